"""Finding seals: all pages of the list, ids from their beginnings, ids for shell completion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from sealsvc.cli.answers import ask
from sealsvc.cli.options import Settings
from sealsvc.client import Client
from sealsvc.errors import Refusal
from sealsvc.messages import List, SealInfo, SealPage

_ID_LENGTH = 24
_PAGE = 500
_PREFIX = re.compile(r"[0-9a-f]{1,24}", re.ASCII)

# Completion runs at each TAB: a slow service must not hang the shell.
_COMPLETION_TIMEOUT = 1.0


def every_seal(client: Client, **filters: Any) -> Iterator[SealInfo]:
    after: str | None = None
    while True:
        page = ask(client, List, SealPage, after=after, limit=_PAGE, **filters)
        yield from page.seals
        if page.next is None:
            return
        after = page.next


def find_seal(client: Client, prefix: str) -> str:
    """The id that begins with `prefix`. A whole id is not looked up: it may be of a dead seal."""
    if not _PREFIX.fullmatch(prefix):
        raise click.BadParameter(f"{prefix!r} is not a seal id or the beginning of one")
    if len(prefix) == _ID_LENGTH:
        return prefix
    found = [seal.id for seal in every_seal(client) if seal.id.startswith(prefix)]
    if not found:
        raise Refusal("no-such-seal", f"no live seal's id begins with {prefix}")
    if len(found) > 1:
        raise click.BadParameter(f"{prefix} is the beginning of {len(found)} ids: give more of it")
    return found[0]


def complete_seal(
    ctx: click.Context,
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    """Ids for the shell; none when the service does not answer, for nobody wants errors at TAB."""
    try:
        with Client(Settings.of(ctx).socket, timeout=_COMPLETION_TIMEOUT) as client:
            return [
                CompletionItem(seal.id, help=f"{seal.state.value} {seal.path}")
                for seal in every_seal(client)
                if seal.id.startswith(incomplete)
            ]
    except (Refusal, OSError):
        return []
