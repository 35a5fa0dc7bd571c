"""sealctl ls: the live seals."""

from __future__ import annotations

import time

import click
from rich.console import Console

from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, state_text, table
from sealsvc.cli.parameters import choice
from sealsvc.cli.paths import absolute
from sealsvc.cli.seals import every_seal
from sealsvc.cli.units import duration, exact_range
from sealsvc.display import printable
from sealsvc.messages import SealInfo, SealPage
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


def _print(console: Console, seals: list[SealInfo]) -> None:
    made = table(
        "ID", "STATE", "KIND", "CONFLICT", "RANGE", "HOLDER", "AGE", "PATH", right=["RANGE", "AGE"]
    )
    now = time.time()
    for seal in seals:
        made.add_row(
            seal.id,
            state_text(seal.state),
            seal.kind.value,
            seal.conflict.value,
            exact_range(seal.range),
            printable(f"{seal.holder.pid}/{seal.holder.comm}"),
            duration(now - seal.granted_at),
            printable(seal.path),
        )
    console.print(made)
