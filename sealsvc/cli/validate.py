"""sealctl validate: is a sealed range mapped as its seal requires?"""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from sealsvc.cli.answers import ask
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, fields, state_text
from sealsvc.cli.parameters import ADDRESS
from sealsvc.cli.seals import complete_seal, find_seal
from sealsvc.protocol.seals import Mapped, MappingReport

EXAMPLES = """\b
Examples:
  sealctl validate 5f1e
  sealctl validate 5f1e --address 7f0000200000   # where the range begins in the holder
  sealctl validate $SEALSVC_SEAL                 # from within `sealctl hold`, once mapped
"""


@click.command(epilog=EXAMPLES)
@click.argument("seal", metavar="ID", shell_complete=complete_seal)
@click.option(
    "--address",
    type=ADDRESS,
    help="Where the range begins in the holder, in hexadecimal (all of its mappings are checked).",
)
@shared_options
@pass_settings
def validate(settings: Settings, seal: str, address: int | None) -> None:
    """Prove that the holder has mapped the range of the seal ID as it requires.

    A granted seal becomes active thereby. The exit status is 6, and the first byte that is not
    mapped as required is named, when there is no such mapping.
    """
    with settings.connect(patient=True) as client:
        wanted = find_seal(client, seal)
        report = ask(client, Mapped, MappingReport, seal=wanted, address=address)
    emit(settings, report, lambda console: _print(console, report))


def _print(console: Console, report: MappingReport) -> None:
    rows: list[tuple[str, str | Text]] = [
        ("state", state_text(report.state)),
        ("mappings", f"{report.vmas}, by {report.method}{', DAX' if report.dax else ''}"),
        ("pages", f"{report.present} present of {report.pages}, {report.huge_pages} huge (2M)"),
        ("places", f"{report.pfn_checked} pages proven to be where the extents say"),
        *(("note", note) for note in report.notes),
    ]
    console.print(fields(rows))
