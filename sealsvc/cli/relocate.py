"""sealctl relocate: move the blocks of a file, sealed or not, to better places."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.copy import followed
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note
from sealsvc.cli.parameters import Parsed
from sealsvc.cli.paths import absolute
from sealsvc.cli.units import parse_duration, parse_size
from sealsvc.protocol.admin import JobInfo
from sealsvc.protocol.relocation import Goal, Relocate

EXAMPLES = """\b
Examples:
  sealctl relocate /mnt/a/db --defrag
  sealctl relocate /mnt/a/db --align 2M          # so that huge pages can map it
  sealctl relocate /mnt/a/db --to /mnt/a/fast    # near that directory's inode
  sealctl relocate /mnt/a/db --defrag --grace 2 -o json
  sealctl relocate /mnt/a/db --align 2M --replace        # DAX: holders open it anew
"""

NOT_MOVED = 1


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path())
@click.option("--to", type=click.Path(), metavar="DIRECTORY", help="Near this directory's inode.")
@click.option("--defrag", is_flag=True, help="Into fewer extents.")
@click.option("--align", type=Parsed("SIZE", parse_size), help="To extents aligned to this size.")
@click.option(
    "--grace", type=Parsed("DURATION", parse_duration), default=10.0, show_default=True,
    help="Time that holders have to quiesce.",
)  # fmt: skip
@click.option(
    "--replace",
    is_flag=True,
    help="By a new file that takes the name: also for DAX. Seals end, and holders open it anew.",
)
@shared_options
@pass_settings
def relocate(
    settings: Settings,
    /,
    file: str,
    to: str | None,
    defrag: bool,
    align: int | None,
    grace: float,
    replace: bool,
) -> int:
    """Move the blocks of FILE within its file system, while its holders go on.

    Holders pause for the exchange alone; the contents stay what they are. The exit status is 1 when
    the file system has no better place.
    """
    goal = Goal(to=absolute(to) if to else None, defrag=defrag, align=align)
    with settings.connect() as client:
        job = ask(
            client, Relocate, JobInfo,
            path=absolute(file), goal=goal, grace=grace, replace=replace,
        )  # fmt: skip
        job = followed(client, job)
    emit(settings, job.result, lambda console: _print(console, job.result))
    return 0 if job.result.get("moved") else NOT_MOVED


def _print(console: Console, result: dict[str, Any]) -> None:
    if not result.get("moved"):
        note(f"not moved: {result.get('reason') or 'cancelled'}")
        return
    before, after, pauses = result["before"], result["after"], result["pauses"]
    console.print(
        f"{before['extents']} extents from device byte {before['first']} are {after['extents']}"
        f" from {after['first']}; {len(pauses)} pauses, the longest exchange {max(pauses):.3f} s"
    )
