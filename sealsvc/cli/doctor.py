"""sealctl doctor: measure what can be kept still on a file system, here and now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console

from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.parameters import Words
from sealsvc.cli.progress import steps
from sealsvc.core.display import printable
from sealsvc.core.model import Conflict, Kind

if TYPE_CHECKING:
    from sealsvc.doctor.report import Report, Row

EXAMPLES = """\b
Examples:
  sealctl doctor /pmem
  sealctl doctor /pmem --enforcer bpf,fanotify --kind exclusive --conflict refuse
  sealctl doctor /pmem --only-gaps || echo "read the verdict"
  sealctl doctor /pmem -o json | jq '.coverage[] | select(.result == "not-covered")'
"""

BROKEN = 1

_STYLES = {"waits": "green", "refused": "green", "not-covered": "bold red", "not-applicable": "dim"}


@click.command(epilog=EXAMPLES)
@click.argument("path", type=click.Path(exists=True))
@click.option(
    "--enforcer", "enforcers", multiple=True, metavar="NAME,...", help="Only with these (all)."
)
@click.option("--kind", "kinds", type=Words(Kind), multiple=True, help="Only these kinds.")
@click.option(
    "--conflict", "conflicts", type=Words(Conflict), multiple=True, help="Only these policies."
)
@click.option(
    "--operation", "operations", multiple=True, metavar="NAME,...", help="Only these (all)."
)
@click.option("--disruptive", is_flag=True, help="Also what disturbs the whole file system.")
@click.option("--only-gaps", is_flag=True, help="Show only what is not covered.")
@shared_options
@pass_settings
def doctor(settings: Settings, /, path: str, only_gaps: bool, **only: Any) -> int:
    """Measure the coverage on the file system of PATH, in scratch files there.

    Every operation that could change an extent map is tried against a sealed file: it waits, is
    refused, passes without harm, or is not covered. It asks the running service; for root, with
    --enforcer or when none runs, a private one.

    The last line is the verdict. The exit status is 1 when something gets past a seal that the
    README does not name as a gap (or nothing could be measured), else 0.
    """
    # The measuring code loads the native module, which almost nothing else here needs.
    from sealsvc.doctor.promise import Verdict, judged
    from sealsvc.doctor.report import expected_rows, measure
    from sealsvc.doctor.verdict import Result

    kinds = [Kind(word) for word in _flat(only["kinds"])] or list(Kind)
    conflicts = [Conflict(word) for word in _flat(only["conflicts"])] or list(Conflict)
    operations = _split(only["operations"]) or None
    whole = expected_rows(path) if operations is None else len(operations) * 4
    with steps(whole * len(kinds) * len(conflicts) // 4) as done:
        report = measure(
            path,
            socket=settings.socket,
            enforcers=_split(only["enforcers"]) or None,
            kinds=kinds,
            conflicts=conflicts,
            operations=operations,
            disruptive=only["disruptive"],
            progress=lambda row: done(_told(row)),
        )
    verdict, text = judged(report.coverage)
    shown = report.coverage
    if only_gaps:
        shown = [row for row in shown if row.result is Result.NOT_COVERED]
    report = msgspec.structs.replace(report, coverage=shown, verdict=verdict)
    emit(settings, report, lambda console: _print(console, report, text))
    return BROKEN if verdict is Verdict.BROKEN else 0


def _flat(lists: tuple[tuple[str, ...], ...]) -> list[str]:
    return [word for words in lists for word in words]


def _split(lists: tuple[str, ...]) -> list[str]:
    return [word.strip() for words in lists for word in words.split(",")]


def _told(row: Row) -> str:
    return f"{row.operation} {row.kind} {row.conflict}: {row.result}"


def _print(console: Console, report: Report, verdict: str) -> None:
    enforcers = ", ".join(report.enforcers) or "none"
    console.print(f"{report.filesystem} on Linux {report.kernel}, enforcers: {enforcers}")
    made = Listing("OPERATION", "KIND", "CONFLICT", "ENFORCER", "RESULT", "ERRNO", "MAP", "NOTE")
    for row in report.coverage:
        made.add_row(
            row.operation,
            row.kind,
            row.conflict,
            row.enforcer or "-",
            row.result,
            row.errno or "-",
            "changed" if row.map_changed else "kept",
            printable(row.note),
            style=_STYLES.get(row.result, ""),
        )
    if report.coverage:
        console.print(made)
    style = {"broken": "bold red", "holds-with-gaps": "yellow"}.get(report.verdict, "green")
    console.print(printable(f"verdict: {verdict}"), style=style)
