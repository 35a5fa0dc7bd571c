"""sealctl ls: the live seals."""

from __future__ import annotations

import os
import time

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note, state_text
from sealsvc.cli.parameters import choice
from sealsvc.cli.paths import absolute
from sealsvc.cli.seals import every_seal
from sealsvc.cli.units import duration, exact_range
from sealsvc.client import Client
from sealsvc.display import printable
from sealsvc.messages import SealInfo, SealPage, ServiceStatus, Status
from sealsvc.model import State

EXAMPLES = """\b
Examples:
  sealctl ls
  sealctl ls --path /pmem/db --state recalled
  sealctl ls --pid 4711 -o json | jq -r '.seals[].id'
"""


@click.command(epilog=EXAMPLES)
@click.option("--path", type=click.Path(), help="Only seals of this file.")
@click.option("--state", type=choice(State), help="Only seals in this state.")
@click.option("--pid", type=click.IntRange(1), help="Only seals that this process holds.")
@shared_options
@pass_settings
def ls(settings: Settings, path: str | None, state: str | None, pid: int | None) -> None:
    """List live seals."""
    filters = {
        "path": absolute(path) if path is not None else None,
        "state": State(state) if state else None,
        "pid": pid,
    }
    with settings.connect() as client:
        seals = list(every_seal(client, **filters))
        emit(settings, SealPage(seals=seals), lambda console: _print(console, seals))
        if not settings.json and not any(filters.values()) and os.geteuid():
            _note_hidden(client, len(seals))


def _note_hidden(client: Client, shown: int) -> None:
    """An empty list must not pass for an idle service."""
    live = sum(ask(client, Status, ServiceStatus).seals.values())
    if live > shown:
        note(f"{live - shown} seals of other users are not shown: root and operators see all")


def _print(console: Console, seals: list[SealInfo]) -> None:
    made = Listing(
        *("ID", "STATE", "DEADLINE", "KIND", "CONFLICT", "RANGE", "HOLDER", "AGE", "PATH"),
        right=["DEADLINE", "RANGE", "AGE"],
        optional=["CONFLICT", "KIND", "AGE", "DEADLINE"],
    )
    now = time.time()
    for seal in seals:
        made.add_row(
            seal.id,
            state_text(seal.state),
            "-" if seal.deadline_in is None else duration(seal.deadline_in),
            seal.kind.value,
            seal.conflict.value,
            exact_range(seal.range),
            printable(f"{seal.holder.pid}/{seal.holder.comm}"),
            duration(now - seal.granted_at),
            printable(seal.path),
        )
    console.print(made)
