"""sealctl watch: events as they happen."""

from __future__ import annotations

import itertools
import time

import click

from sealsvc.cli.answers import ask
from sealsvc.cli.event_lines import told
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import json_line, note
from sealsvc.client import Client
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.protocol.events import Event, Watch, Watching

EXAMPLES = """\b
Examples:
  sealctl watch
  sealctl watch --since 0 --count 20          # what is still kept, then live
  sealctl watch -o json | jq 'select(.name == "drift")'
"""

_STYLES = {
    "granted": "green",
    "refused": "red",
    "conflict": "yellow",
    "drift": "bright_red",
    "alarm": "bright_red",
    "gap": "magenta",
}


@click.command(epilog=EXAMPLES)
@click.option("--since", type=click.IntRange(0), help="Replay the kept events after this number.")
@click.option("--count", type=click.IntRange(1), help="End after so many events.")
@shared_options
@pass_settings
def watch(settings: Settings, since: int | None, count: int | None) -> None:
    """Print events, one a line, until Ctrl-C; with -o json as JSON lines."""
    with settings.connect() as client:
        watching = ask(client, Watch, Watching, since=since)
        if watching.gap:
            note(f"events after {since} are no longer all kept; some are missing")
        _print_events(settings, client, count)


def _print_events(settings: Settings, client: Client, count: int | None) -> None:
    events = (push for push in client.pushes(settings.timeout) if isinstance(push, Event))
    seen = 0
    for event in itertools.islice(events, count):
        seen += 1
        # click.echo flushes: whoever reads our pipe sees each event when it happens.
        json_line(event) if settings.json else click.echo(_line(event), color=_color(settings))
    if seen != count and settings.timeout is None:
        raise Refusal("service-unavailable", "the service closed the connection")


def _color(settings: Settings) -> bool | None:
    return {"always": True, "never": False}.get(settings.color)


def _line(event: Event) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(event.time))
    name = click.style(f"{event.name:<14}", fg=_STYLES.get(event.name))
    what = printable(told(event.name, event.data))
    return f"{event.seq:>6} {moment} {name} {event.seal or '-':<24} {what}"
