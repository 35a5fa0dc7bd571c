"""Finding seals: all pages of the list, whole ids from short ones, ids for shell completion.

A short id is the end of one: ids of one run of the service begin alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.options import Settings
from sealsvc.cli.output import is_terminal
from sealsvc.client import Client
from sealsvc.client.paging import every_seal
from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.protocol.admin import ConflictPage, Conflicts, WaitingConflict
from sealsvc.protocol.history import History, SealFilter, SealHistory
from sealsvc.protocol.seals import SealInfo

AT_REST = frozenset({State.GRANTED, State.ACTIVE, State.COURTESY})

_ID_LENGTH = 24
_SHORTEST = 6  # digits of a short id, at least
_PART = re.compile(r"[0-9a-f]{1,24}", re.ASCII)

# Completion runs at each TAB: a slow service must not hang the shell.
_COMPLETION_TIMEOUT = 1.0


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """By whole id: its end, as long as it takes to tell these ids from each other."""
    whole = set(ids)
    length = _SHORTEST
    while len({id[-length:] for id in whole}) < len(whole):
        length += 1
    return {id: id[-length:] for id in whole}


def shown_ids(console: Console, ids: Iterable[str]) -> dict[str, str]:
    """By whole id, what a list shows: short ids on a terminal, whole ones elsewhere."""
    return short_ids(ids) if is_terminal(console) else {id: id for id in ids}


def find_seal(client: Client, part: str, *, past: bool = False) -> str:
    """The one id that begins or ends with `part`; with `past` also that of a seal which is over.
    A whole id is not looked up: it may be of a dead seal."""
    if not _PART.fullmatch(part):
        raise click.BadParameter(f"{part!r} is not a seal id, nor the beginning or end of one")
    if len(part) == _ID_LENGTH:
        return part
    found = [s.id for s in every_seal(client, search=part) if _is_named(s.id, part)]
    if past and not found:
        found = _in_history(client, part)
    if not found:
        kind = "seal's" if past else "live seal's"
        raise Refusal("no-such-seal", f"no {kind} id begins or ends with {part}")
    if len(found) > 1:
        raise click.BadParameter(f"{part} is the beginning or end of {len(found)} ids: say more")
    return found[0]


def _is_named(id: str, part: str) -> bool:
    return id.startswith(part) or id.endswith(part)


def _in_history(client: Client, part: str) -> list[str]:
    try:
        page = ask(client, History, SealHistory, wanted=SealFilter(part=part), limit=40)
    except Refusal as refusal:
        if refusal.code in ("unknown-operation", "denied"):  # no history here, or not for us
            return []
        raise
    return [seal.id for seal in page.seals]


def waiting_for(client: Client, seals: Iterable[SealInfo]) -> list[WaitingConflict]:
    """The operations that wait for one of these seals. They wait only for what is asked back, so
    that most lists need no question; and users are told of their own alone."""
    wanted = {seal.id for seal in seals if seal.state not in AT_REST}
    if not wanted:
        return []
    page = ask(client, Conflicts, ConflictPage, limit=1000)
    return [wait for wait in page.conflicts if wanted & set(wait.seals)]


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
