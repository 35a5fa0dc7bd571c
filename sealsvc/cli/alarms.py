"""sealctl alarms: what an operator should look at, and saying that somebody has."""

from __future__ import annotations

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.units import moment
from sealsvc.core.display import printable
from sealsvc.protocol.admin import AcknowledgeAlarm, AlarmInfo, AlarmPage, Alarms

EXAMPLES = """\b
Examples:
  sealctl alarms
  sealctl alarms --open || echo "somebody should look"
  sealctl alarms -o json | jq -r '.alarms[].id'
"""

OPEN = 1


@click.command(epilog=EXAMPLES)
@click.option("--open", "only_open", is_flag=True, help="Only those that nobody acknowledged.")
@click.option("--acknowledge", metavar="ID", help="Say that this alarm has been seen.")
@shared_options
@pass_settings
def alarms(settings: Settings, only_open: bool, acknowledge: str | None) -> int:
    """List the alarms of this boot, the newest first, or acknowledge one.

    Listed with --open, the exit status is 1 when there is an alarm that nobody acknowledged.
    """
    with settings.connect() as client:
        if acknowledge is not None:
            found = ask(client, AcknowledgeAlarm, AlarmInfo, alarm=acknowledge)
            page = AlarmPage(alarms=[found], total=1, open=0, dropped=0)
        else:
            page = ask(client, Alarms, AlarmPage, open=only_open)
    emit(settings, page, lambda console: _print(console, page))
    return OPEN if only_open and page.open else 0


def _print(console: Console, page: AlarmPage) -> None:
    made = Listing("ID", "LAST", "COUNT", "SEEN BY", "REASON", "PATH", right=["COUNT"])
    for alarm in page.alarms:
        style = "" if alarm.acknowledged_by else "red"
        at = alarm.acknowledged_at
        seen = "-" if at is None else f"{alarm.acknowledged_by} {moment(at)}"
        row = (alarm.id, moment(alarm.last), str(alarm.count), seen, alarm.reason, alarm.path)
        made.add_row(*map(printable, row), style=style)
    console.print(made)
    if page.total > len(page.alarms):
        console.print(f"... and {page.total - len(page.alarms)} more", style="yellow")
    if page.dropped:
        console.print(f"{page.dropped} open alarms were dropped to make room", style="yellow")
