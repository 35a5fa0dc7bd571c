"""sealctl history and changes: what became of seals, and of the maps they held."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note, state_text
from sealsvc.cli.parameters import DURATION, choice
from sealsvc.cli.paths import absolute
from sealsvc.cli.seals import complete_seal, find_seal, shown_ids
from sealsvc.cli.units import about_size, duration, exact_range, moment
from sealsvc.client import Client
from sealsvc.core.display import printable
from sealsvc.core.model import State
from sealsvc.core.states import LIVE
from sealsvc.protocol.history import (
    ConflictHistory,
    ConflictRecord,
    History,
    MapChanges,
    MapDifference,
    PastConflicts,
    SealFilter,
    SealHistory,
    SealRecord,
    Steps,
    Transitions,
)

HISTORY_EXAMPLES = """\b
Examples:
  sealctl history                              # the newest seals, live and over
  sealctl history --path /pmem/db --since 2d
  sealctl history 5f1e...                      # each step of one, and what it met
"""
CHANGES_EXAMPLES = """\b
Examples:
  sealctl changes 5f1e...
  sealctl changes 5f1e... -o json | jq .changed
"""


@click.command(epilog=HISTORY_EXAMPLES)
@click.argument("seal", metavar="[ID]", required=False, shell_complete=complete_seal)
@click.option("--path", type=click.Path(), help="Only seals of this file.")
@click.option("--pid", type=click.IntRange(1), help="Only seals that this process held.")
@click.option("--uid", type=click.IntRange(0), help="Only seals that this user held.")
@click.option("--state", type=choice(State), help="Only seals whose last state is this one.")
@click.option("--since", type=DURATION, help="Only seals that lived less than so long ago.")
@click.option("--limit", type=click.IntRange(1), default=40, help="So many at most (40).")
@shared_options
@pass_settings
def history(
    settings: Settings,
    seal: str | None,
    path: str | None,
    pid: int | None,
    uid: int | None,
    state: str | None,
    since: float | None,
    limit: int,
) -> None:
    """List seals that are over, too; or tell the life of one."""
    with settings.connect() as client:
        if seal is not None:
            _tell_life(settings, client, find_seal(client, seal, past=True))
            return
        wanted = SealFilter(
            path=absolute(path) if path is not None else None,
            pid=pid,
            uid=uid,
            state=state,
            since=None if since is None else time.time() - since,
        )
        found = list(_up_to(limit, client, wanted=wanted))
    emit(settings, SealHistory(seals=found), lambda console: _print_seals(console, found))
    if not found and not settings.json and os.geteuid():
        note("users see the seals of their own; root and operators see all")


def _up_to(limit: int, client: Client, **asked: Any) -> Iterator[SealRecord]:
    after: str | None = None
    while limit > 0:
        page = ask(client, History, SealHistory, after=after, limit=min(limit, 1000), **asked)
        yield from page.seals
        limit -= len(page.seals)
        if page.next is None:
            return
        after = page.next


def _print_seals(console: Console, seals: list[SealRecord]) -> None:
    made = Listing(
        *("ID", "STATE", "RANGE", "HOLDER", "GRANTED", "LIVED", "PATH"),
        right=["RANGE"],
        optional=["LIVED", "GRANTED"],
    )
    ids = shown_ids(console, [seal.id for seal in seals])
    for seal in seals:
        made.add_row(
            ids[seal.id],
            _cut_off(seal) or state_text(State(seal.state)),
            exact_range(seal.range),
            printable(f"{seal.holder_pid}/{seal.holder_comm}"),
            moment(seal.granted_at),
            _lived(seal),
            printable(seal.path),
        )
    console.print(made)


def _cut_off(seal: SealRecord) -> Text | None:
    """What a seal is called that the end of the machine, or of the keeper, ended: nobody saw it."""
    if seal.ended_at is None or seal.state not in LIVE:
        return None
    return Text("cut off", style="yellow")


def _lived(seal: SealRecord) -> str:
    if seal.ended_at is None:
        return "lives"
    # What was cut off ended some time before that was found.
    at_most = "< " if _cut_off(seal) else ""
    return at_most + duration(seal.ended_at - seal.granted_at)


def _tell_life(settings: Settings, client: Client, seal: str) -> None:
    steps = ask(client, Steps, Transitions, seal=seal)
    met = ask(client, PastConflicts, ConflictHistory, seal=seal).conflicts
    told = {"seal": seal, "transitions": steps.transitions, "conflicts": met}
    found = ask(client, History, SealHistory, wanted=SealFilter(part=seal), limit=1).seals
    emit(settings, told, lambda console: _print_life(console, found[0], steps, met))


def _print_life(
    console: Console, seal: SealRecord, steps: Transitions, met: list[ConflictRecord]
) -> None:
    made = Listing("TIME", "SEQID", "FROM", "TO", "WHY", right=["SEQID"])
    for step in steps.transitions:
        made.add_row(
            moment(step.time), str(step.seqid), step.before, step.after, printable(step.reason)
        )
    console.print(made)
    if _cut_off(seal):
        found = f"cut off while {seal.state}; found {moment(seal.ended_at or 0)}: {seal.reason}"
        console.print(printable(found))
    if not met:
        return
    console.print()
    made = Listing("TIME", "OPERATION", "BY", "UID", "VERDICT", "WAITED", right=["UID", "WAITED"])
    for conflict in reversed(met):
        made.add_row(
            moment(conflict.time),
            printable(f"{conflict.operation} {conflict.offset}:{conflict.length}"),
            printable(f"{conflict.pid}/{conflict.comm}"),
            str(conflict.uid),
            conflict.verdict,
            "-" if conflict.waited is None else duration(conflict.waited),
        )
    console.print(made)


@click.command(epilog=CHANGES_EXAMPLES)
@click.argument("seal", metavar="ID", shell_complete=complete_seal)
@click.option("--limit", type=click.IntRange(1, 200), default=40, help="Rows at most (40).")
@shared_options
@pass_settings
def changes(settings: Settings, seal: str, limit: int) -> None:
    """Compare a file's extent map as it is with that at the grant of a seal, live or over."""
    with settings.connect() as client:
        wanted = find_seal(client, seal, past=True)
        found = ask(client, MapChanges, MapDifference, seal=wanted, limit=limit)
    emit(settings, found, lambda console: _print_changes(console, found))


def _print_changes(console: Console, found: MapDifference) -> None:
    if not found.total:
        console.print(f"{exact_range(found.range)}: as it was at the grant")
        return
    console.print(
        f"{exact_range(found.range)}: {about_size(found.changed)} in {found.total} stretches"
        " are not as they were at the grant"
    )
    made = Listing("RANGE", "AT THE GRANT", "NOW", right=["RANGE"])
    for change in found.changes:
        made.add_row(exact_range(change.range), change.expected, change.found)
    console.print(made)
