"""sealctl ls: the live seals."""

from __future__ import annotations

import os
import time
from collections import Counter

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note, state_text
from sealsvc.cli.parameters import choice
from sealsvc.cli.paths import absolute
from sealsvc.cli.seals import shown_ids, waiting_for
from sealsvc.cli.units import duration, exact_range
from sealsvc.client import Client
from sealsvc.client.paging import every_seal
from sealsvc.core.display import printable
from sealsvc.core.model import Kind, State
from sealsvc.protocol.seals import SealInfo, SealPage
from sealsvc.protocol.system import ServiceStatus, Status

EXAMPLES = """\b
Examples:
  sealctl ls
  sealctl ls --path /pmem/db --state recalled
  sealctl ls --filesystem /pmem --kind exclusive --tag nic-0
  sealctl ls --pid 4711 -o json | jq -r '.seals[].id'
"""


@click.command(epilog=EXAMPLES)
@click.option("--path", type=click.Path(), help="Only seals of this file.")
@click.option("--state", type=choice(State), help="Only seals in this state.")
@click.option("--pid", type=click.IntRange(1), help="Only seals that this process holds.")
@click.option("--kind", type=choice(Kind), help="Only seals of this kind.")
@click.option("--tag", help="Only seals with this tag.")
@click.option("--filesystem", type=click.Path(), help="Only seals on the file system mounted here.")
@shared_options
@pass_settings
def ls(
    settings: Settings,
    path: str | None,
    state: str | None,
    pid: int | None,
    kind: str | None,
    tag: str | None,
    filesystem: str | None,
) -> None:
    """List live seals.

    On a terminal ids are shortened to their ends, which every command takes; -o wide and pipes get
    them whole. WAITING counts the operations that wait for a seal.
    """
    filters = {
        "path": absolute(path) if path is not None else None,
        "state": State(state) if state else None,
        "pid": pid,
        "kind": Kind(kind) if kind else None,
        "tag": tag,
        "filesystem": absolute(filesystem) if filesystem is not None else None,
    }
    with settings.connect() as client:
        seals = list(every_seal(client, **filters))
        waiting = Counter[str]() if settings.json else _waiting(client, seals)
        emit(settings, SealPage(seals=seals), lambda console: _print(console, seals, waiting))
        if not settings.json and os.geteuid():
            _note_hidden(client, len(seals), filtered=any(filters.values()))


def _note_hidden(client: Client, shown: int, *, filtered: bool) -> None:
    """An empty list must not pass for an idle service."""
    live = sum(ask(client, Status, ServiceStatus).seals.values())
    if filtered and not shown and live:
        note("no seal matches of those that you may see: root and operators see all users'")
    elif not filtered and live > shown:
        note(f"{live - shown} seals of other users are not shown: root and operators see all")


def _waiting(client: Client, seals: list[SealInfo]) -> Counter[str]:
    """How many operations wait, by seal."""
    return Counter(id for wait in waiting_for(client, seals) for id in wait.seals)


def _print(console: Console, seals: list[SealInfo], waiting: Counter[str]) -> None:
    made = Listing(
        *("ID", "STATE", "WAITING", "DEADLINE"),
        *("KIND", "CONFLICT", "RANGE", "HOLDER", "AGE", "PATH"),
        right=["WAITING", "DEADLINE", "RANGE", "AGE"],
        optional=["CONFLICT", "KIND", "AGE"],
        sparse=["WAITING", "DEADLINE"],
    )
    now = time.time()
    ids = shown_ids(console, [seal.id for seal in seals])
    for seal in seals:
        made.add_row(
            ids[seal.id],
            state_text(seal.state),
            str(waiting[seal.id] or "-"),
            "-" if seal.deadline_in is None else duration(seal.deadline_in),
            seal.kind.value,
            seal.conflict.value,
            exact_range(seal.range),
            printable(f"{seal.holder.pid}/{seal.holder.comm}"),
            duration(now - seal.granted_at),
            printable(seal.path),
        )
    console.print(made)
