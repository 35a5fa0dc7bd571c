"""sealctl recall: ask for seals back."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note, state_text
from sealsvc.cli.parameters import DURATION, RANGE
from sealsvc.cli.paths import absolute
from sealsvc.cli.seals import AT_REST, complete_seal, find_seal
from sealsvc.cli.units import duration
from sealsvc.client.paging import every_seal
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, State
from sealsvc.protocol.seals import RecallOutcome, RecallReport, RecallSeals

EXAMPLES = """\b
Examples:
  sealctl recall 5f1e 60aa --reason "defragmentation"
  sealctl recall --path /pmem/db --range 0:2M --wait
  sealctl recall --filesystem /pmem --grace 30s --wait --timeout 1m   # before umount
  sealctl recall --pid 4711 --any 10 --wait                           # of its own choice
  sealctl recall --all
"""

_NOT_ENDED = {State.FENCE_FAILED, State.LOST}


@click.command(epilog=EXAMPLES)
@click.argument("seals", metavar="[ID]...", nargs=-1, shell_complete=complete_seal)
@click.option("--path", type=click.Path(), help="Every seal of this file.")
@click.option("--range", "span", type=RANGE, help="With --path: only those that overlap it.")
@click.option("--filesystem", type=click.Path(), help="Every seal on this path's file system.")
@click.option("--pid", type=click.IntRange(1), help="Every seal that this process holds.")
@click.option("--any", type=click.IntRange(1), help="With --pid: so many, of its own choice.")
@click.option("--all", "everything", is_flag=True, help="Every seal.")
@click.option("--grace", type=DURATION, help="Time to leave the holders (each seal's own).")
@click.option("--wait", is_flag=True, help="Until the recalls have ended (bound it by --timeout).")
@click.option("--reason", default="", help="Told to the holders and kept in the audit log.")
@shared_options
@pass_settings
def recall(
    settings: Settings,
    /,
    seals: tuple[str, ...],
    path: str | None,
    span: ByteRange | None,
    filesystem: str | None,
    pid: int | None,
    everything: bool,
    **manner: Any,
) -> int:
    """Recall seals by ID, one after the other, or all in one scope at once.

    With --wait the exit status is 1 when a recall ended without the seal's return or revocation
    (fence-failed, lost).
    """
    scope = _scope(path, span, filesystem, pid, everything)
    if bool(seals) + len(scope.keys() - {"range"}) != 1:
        raise click.UsageError("name ids, or one of --path, --filesystem, --pid and --all")
    if span is not None and path is None:
        raise click.UsageError("--range belongs to --path")
    if manner["any"] is not None and pid is None:
        raise click.UsageError("--any belongs to --pid")
    try:
        report = _recall(settings, seals, scope, manner)
    except TimeoutError:
        if not manner["wait"]:
            raise
        raise _unfinished(settings, scope) from None
    emit(settings, report, lambda console: _print(console, report))
    return int(manner["wait"] and any(o.state in _NOT_ENDED for o in report.recalled))


def _scope(
    path: str | None,
    span: ByteRange | None,
    filesystem: str | None,
    pid: int | None,
    everything: bool,
) -> dict[str, Any]:
    scope = {
        "path": None if path is None else absolute(path),
        "range": span,
        "filesystem": None if filesystem is None else absolute(filesystem),
        "pid": pid,
        "all": everything or None,
    }
    return {name: value for name, value in scope.items() if value is not None}


def _recall(
    settings: Settings, seals: tuple[str, ...], scope: dict[str, Any], manner: dict[str, Any]
) -> RecallReport:
    with settings.connect(patient=manner["wait"]) as client:
        if not seals:
            return ask(client, RecallSeals, RecallReport, **scope, **manner)
        ids = [find_seal(client, seal) for seal in seals]
        outcomes: list[RecallOutcome] = []  # one each: nothing is cut
        for seal in ids:
            outcomes += ask(client, RecallSeals, RecallReport, seal=seal, **manner).recalled
        return RecallReport(recalled=outcomes)


def _unfinished(settings: Settings, scope: dict[str, Any]) -> Refusal:
    """--timeout has passed: the recalls go on, and these seals have not been given back."""
    filters = {name: scope[name] for name in ("path", "pid") if name in scope}
    with settings.connect() as client:
        left = [s for s in every_seal(client, **filters) if s.state not in AT_REST]
    told = ", ".join(
        f"{seal.id} of process {seal.holder.pid} ({seal.holder.comm})" for seal in left[:3]
    )
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return Refusal(
        "try-later",
        f"the recalls go on, but have not ended within {duration(settings.timeout or 0)}; not given"
        f" back: {told or 'none any more'}{more}",
        {"seals": [seal.id for seal in left[:100]]},
        retry_after=1.0,
    )


def _print(console: Console, report: RecallReport) -> None:
    if not report.recalled:
        note("nothing to recall")
        return
    made = Listing("ID", "STATE")
    for outcome in report.recalled:
        made.add_row(outcome.seal, state_text(outcome.state))
    console.print(made)
    if report.more:
        console.print(f"... and {report.more} more")
