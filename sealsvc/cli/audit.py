"""sealctl audit: are all sealed extent maps as they were recorded?"""

from __future__ import annotations

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.progress import waiting
from sealsvc.cli.seals import complete_seal, find_seal
from sealsvc.cli.units import exact_size
from sealsvc.core.display import printable
from sealsvc.protocol.system import Audit, AuditReport

EXAMPLES = """\b
Examples:
  sealctl audit
  sealctl audit 5f1e
  sealctl audit -o json || echo "drift, or maps that could not be read"
"""

DRIFT_FOUND = 8
UNREADABLE = 1


@click.command(epilog=EXAMPLES)
@click.argument("seal", metavar="[ID]", required=False, shell_complete=complete_seal)
@shared_options
@pass_settings
def audit(settings: Settings, seal: str | None) -> int:
    """Compare present extent maps with the recorded ones; drifted seals become lost.

    The exit status is 8 when drift was found, else 1 when a map could not be read.
    """
    with settings.connect(patient=True) as client:
        wanted = find_seal(client, seal) if seal else None
        with waiting("comparing every sealed map with the recorded one"):
            report = ask(client, Audit, AuditReport, seal=wanted)
    emit(settings, report, lambda console: _print(console, report))
    if report.drifted:
        return DRIFT_FOUND
    return UNREADABLE if report.unreadable else 0


def _print(console: Console, report: AuditReport) -> None:
    console.print(
        f"{report.checked} checked, {len(report.drifted)} drifted,"
        f" {len(report.unreadable)} unreadable"
    )
    if report.drifted:
        made = Listing("ID", "AT", "EXPECTED", "FOUND", "PATH", right=["AT"])
        for drift in report.drifted:
            row = (drift.seal, exact_size(drift.logical), drift.expected, drift.found, drift.path)
            made.add_row(*map(printable, row), style="red")
        console.print(made)
    for seal in report.unreadable:
        console.print(f"unreadable: {printable(seal)}", style="yellow")
    if report.more:
        console.print(f"... and {report.more} more", style="yellow")
