"""sealctl top: the service at work, drawn anew each second."""

from __future__ import annotations

import itertools
import time

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import console as made_console
from sealsvc.cli.output import fields, json_line, state_text
from sealsvc.cli.parameters import DURATION
from sealsvc.cli.units import duration
from sealsvc.client import Client
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.protocol.admin import (
    ConflictPage,
    Conflicts,
    Histogram,
    HolderPage,
    Holders,
    JobList,
    Jobs,
    JobState,
    Measures,
    MeasuresReport,
)
from sealsvc.protocol.seals import List, SealPage
from sealsvc.protocol.system import ServiceStatus, Status

EXAMPLES = """\b
Examples:
  sealctl top
  sealctl top --interval 5s
  sealctl top --count 1 -o json
"""

_ROWS = 10
_ASKED_BACK = (State.RECALLED, State.FENCING, State.FENCE_FAILED, State.LOST)


@click.command(epilog=EXAMPLES)
@click.option("--interval", type=DURATION, default=1.0, help="Time between two pictures (1s).")
@click.option("--count", type=click.IntRange(1), help="End after so many.")
@shared_options
@pass_settings
def top(settings: Settings, interval: float, count: int | None) -> None:
    """Watch seals, recalls, waiting operations, jobs and latencies, until Ctrl-C.

    It goes on by itself after a restart of the service. Into a pipe it prints one picture (or so
    many as --count says).
    """
    console = made_console(settings)
    if settings.json or not console.is_terminal:
        for turn in range(count or 1):
            if turn:
                time.sleep(interval)
            with settings.connect() as client:
                _print_once(settings, console, client)
        return
    turns = itertools.count() if count is None else range(count)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _ in turns:
            live.update(_picture(settings), refresh=True)
            time.sleep(interval)


def _print_once(settings: Settings, console: Console, client: Client) -> None:
    if settings.json:
        json_line({"status": ask(client, Status, ServiceStatus), "measures": _measures(client)})
    else:
        console.print(_drawn(client))


def _picture(settings: Settings) -> RenderableType:
    try:
        with settings.connect() as client:
            return _drawn(client)
    except (Refusal, TimeoutError) as error:
        return Text(
            f"{printable(str(error))}\n\nSeals stay in force. Trying again.", style="yellow"
        )


def _measures(client: Client) -> MeasuresReport:
    return ask(client, Measures, MeasuresReport)


def _drawn(client: Client) -> RenderableType:
    status = ask(client, Status, ServiceStatus)
    parts: list[RenderableType] = [_head(status), _latencies(_measures(client))]
    recalled = [
        seal
        for state in _ASKED_BACK
        if status.seals.get(state)
        for seal in ask(client, List, SealPage, state=state, limit=_ROWS).seals
    ]
    if recalled:
        made = Listing("RECALLED", "STATE", "DEADLINE", "HOLDER", "PATH", right=["DEADLINE"])
        for seal in recalled[:_ROWS]:
            left = "-" if seal.deadline_in is None else duration(seal.deadline_in)
            who = printable(f"{seal.holder.pid}/{seal.holder.comm}")
            made.add_row(seal.id, state_text(seal.state), left, who, printable(seal.path))
        parts.append(made)
    waiting = ask(client, Conflicts, ConflictPage, limit=_ROWS)
    if waiting.total:
        made = Listing("WAITING", "PID", "FOR", "PATH", right=["PID", "FOR"])
        for held in waiting.conflicts:
            operation = held.operation
            name = printable(f"{operation.name} {operation.comm}")
            made.add_row(name, str(operation.pid), duration(held.waits), printable(held.path))
        parts.append(made)
    parts += _holders(client)
    parts += _jobs(client)
    return Group(*itertools.chain.from_iterable((part, "") for part in parts))


def _head(status: ServiceStatus) -> RenderableType:
    counts = ", ".join(f"{n} {state}" for state, n in status.seals.items() if n) or "none"
    able = ", ".join(e.name for e in status.enforcers if e.available) or "none"
    waiting = str(status.conflicts_waiting)
    return fields(
        [
            ("sealsvc", f"{status.version} on {status.kernel}, up {duration(status.uptime)}"),
            ("seals", counts),
            ("waiting", Text(waiting, style="yellow" if status.conflicts_waiting else "")),
            ("enforcers", able),
        ]
    )


def _latencies(measures: MeasuresReport) -> RenderableType:
    made = Listing("LATENCY", "COUNT", "P50", "P99", right=["COUNT", "P50", "P99"])
    for name, found in measures.latencies.items():
        cells = [_within(found, share) for share in (0.5, 0.99)]
        made.add_row(name, str(sum(found.counts)), *cells)
    return made


def _within(found: Histogram, share: float) -> str:
    """The bound that so many observations stayed within."""
    total = sum(found.counts)
    if not total:
        return "-"
    reached = itertools.accumulate(found.counts)
    at = next(n for n, count in enumerate(reached) if count >= total * share)
    return f"<= {duration(found.bounds[at])}" if at < len(found.bounds) else "more"


def _holders(client: Client) -> list[RenderableType]:
    page = ask(client, Holders, HolderPage, limit=100)
    if not page.holders:
        return []
    made = Listing("HOLDER", "PID", "UID", "SEALS", right=["PID", "UID", "SEALS"])
    busiest = sorted(page.holders, key=lambda holder: -holder.seals)[:_ROWS]
    for holder in busiest:
        made.add_row(printable(holder.comm), str(holder.pid), str(holder.uid), str(holder.seals))
    return [made]


def _jobs(client: Client) -> list[RenderableType]:
    running = [job for job in ask(client, Jobs, JobList).jobs if job.state is JobState.RUNNING]
    return [
        Text(f"job {job.kind}: {job.done}/{job.total} {printable(job.step)}") for job in running
    ]
