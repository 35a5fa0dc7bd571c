"""sealctl copy: copy bytes between two files, and say how."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note
from sealsvc.cli.parameters import RANGE, Parsed, Words
from sealsvc.cli.paths import absolute
from sealsvc.cli.units import about_size, duration, exact_size, moment, parse_size
from sealsvc.client import Client
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.admin import CancelJob, JobInfo, JobState, ShowJob
from sealsvc.protocol.copies import STRATEGIES, CopyTrust, CopyTrustReport, StartCopy

EXAMPLES = """\b
Examples:
  sealctl copy /mnt/a/db /mnt/a/db.new                  # the whole file
  sealctl copy --range 1M:4M --to 8M /mnt/a/x /mnt/a/y  # 4 MiB, in place
  sealctl copy --dry-run -o json /mnt/a/x /mnt/a/y      # what would be used, and why nothing else
  sealctl copy --throttle 200M --verify /mnt/a/x /mnt/a/y
  sealctl copy --trust                                  # rates, and self-tests of offloads
"""

SIZE = Parsed("SIZE", parse_size)
_POLL = 0.1  # seconds between two looks at the job


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(), required=False)
@click.argument("destination", type=click.Path(), required=False)
@click.option("--range", "span", type=RANGE, help="Only these bytes (the whole file).")
@click.option("--to", type=SIZE, help="Offset in the destination (the same).")
@click.option("--dry-run", is_flag=True, help="Show the plan, and copy nothing.")
@click.option("--throttle", type=SIZE, help="Most bytes per second.")
@click.option("--verify", is_flag=True, help="Read both back and compare.")
@click.option("--in-place", is_flag=True, help="Keep the destination's extent map.")
@click.option("--recall", is_flag=True, help="Recall seals on both files first (operators).")
@click.option("--no-seal", is_flag=True, help="Take no seals, and so use no offload.")
@click.option("--no-sync", is_flag=True, help="Do not flush: the result is not durable.")
@click.option("--only", type=Words(STRATEGIES), multiple=True, help="Only these strategies.")
@click.option("--resume", default="", metavar="TOKEN", help="Go on where a copy ended.")
@click.option("--trust", is_flag=True, help="Show what was measured and self-tested.")
@shared_options
@pass_settings
def copy(
    settings: Settings,
    /,
    source: str | None,
    destination: str | None,
    trust: bool,
    **manner: Any,
) -> int:
    """Copy bytes from SOURCE to DESTINATION by the fastest way that is sound.

    The files are opened with the caller's own rights; with --url they are paths of the server. The
    exit status is 1 when a byte is missing, the source changed during the copy, or tags of the
    source did not travel or do not fit.
    """
    if trust:
        with settings.connect() as client:
            report = ask(client, CopyTrust, CopyTrustReport)
        emit(settings, report, lambda console: _print_trust(console, report))
        return 0
    if source is None or destination is None:
        raise click.UsageError("name SOURCE and DESTINATION")
    asked = _asked(**manner)
    with settings.connect() as client:
        job = _start(settings, client, source, destination, asked)
        job = followed(client, job)
    emit(settings, job.result, lambda console: _print(console, job.result))
    if manner["dry_run"]:
        return 0
    untrue = any("error" in row or row["blocks"]["suspect"] for row in job.result.get("tags", ()))
    return int(not job.result.get("whole") or bool(job.result.get("source_changed")) or untrue)


def _asked(
    span: ByteRange | None,
    only: tuple[tuple[str, ...], ...],
    no_seal: bool,
    no_sync: bool,
    **rest: Any,
) -> dict[str, Any]:
    asked = {name: value for name, value in rest.items() if value is not None}
    if span is None:
        asked["whole"] = not asked.get("to")
    else:
        asked |= {"offset": span.offset, "length": span.length}
    strategies = [name for names in only for name in names]
    return asked | {"strategies": strategies, "seals": not no_seal, "durable": not no_sync}


def _start(
    settings: Settings, client: Client, source: str, there: str, asked: dict[str, Any]
) -> JobInfo:
    if settings.url:
        return ask(
            client,
            StartCopy,
            JobInfo,
            source=absolute(source),
            destination=absolute(there),
            **asked,
        )
    with _opened(source, there, create=not asked["dry_run"]) as fds:
        return ask(client, StartCopy, JobInfo, fds, **asked)


@contextmanager
def _opened(source: str, there: str, *, create: bool) -> Iterator[list[int]]:
    """With our own rights. One descriptor where both are one file: two would keep it from being
    sealed."""
    with ExitStack() as stack:
        one = os.path.exists(there) and os.path.samefile(source, there)
        fds = []
        if not one:
            fds.append(os.open(source, os.O_RDONLY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        flags = os.O_RDWR | os.O_CLOEXEC
        if not create and not os.path.exists(there):
            # What would be made: a file without a name.
            fds.append(os.open(os.path.dirname(there) or ".", flags | os.O_TMPFILE))
        else:
            fds.append(os.open(there, flags | (os.O_CREAT if create else 0), 0o666))
        stack.callback(os.close, fds[-1])
        yield fds


def followed(client: Client, job: JobInfo) -> JobInfo:
    """Until it has ended. Who interrupts it cancels it, and is told how far it came. Raises Refusal
    (io-error) of a job that failed, or that the service's end interrupted."""
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    told = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    shown = Progress(
        *columns, TimeRemainingColumn(), told, console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with shown as progress:
        bar = progress.add_task("", total=None)
        pause = 0.01
        try:
            while job.state is JobState.RUNNING:
                time.sleep(pause)
                pause = min(_POLL, pause * 2)
                job = ask(client, ShowJob, JobInfo, job=job.id)
                progress.update(
                    bar, completed=job.done, total=job.total or None, description=job.step
                )
        except KeyboardInterrupt:
            job = ask(client, CancelJob, JobInfo, job=job.id)
    if job.state in (JobState.FAILED, JobState.INTERRUPTED):
        raise Refusal("io-error", job.error)
    return job


def _print(console: Console, result: dict[str, Any]) -> None:
    if "plan" in result:
        _print_plan(console, result)
        return
    how = ", ".join(f"{name} {about_size(n)}" for name, n in result["bytes_by_strategy"].items())
    rate = result["done"] / max(result["seconds"], 1e-9)
    console.print(
        f"{about_size(result['done'])} of {about_size(result['requested'])} in"
        f" {duration(result['seconds'])} ({about_size(int(rate))}/s) by {how or 'nothing'}"
    )
    made = Listing("SOURCE", "DESTINATION", "LENGTH", "STRATEGY", right=["SOURCE", "DESTINATION"])
    for row in result["rows"]:
        numbers = (exact_size(row[name]) for name in ("source", "destination", "length"))
        made.add_row(*numbers, row["strategy"])
    console.print(made)
    if result["more_rows"]:
        console.print(f"... and {result['more_rows']} more")
    for fall in result["fell_back"]:
        note(f"{fall['strategy']} gave up at byte {fall['source']}: {fall['reason']}")
    for row in result.get("tags", ()):
        _print_tags(row)
    if not result["durable"]:
        note("the copy was not flushed: it is not durable")
    if result["source_changed"]:
        note("the source changed during the copy: this is no state that it ever had")
    if not result["whole"]:
        note(f"not whole: {result['error'] or 'cancelled'}")
        note(f"go on with --resume {result['token']}")


def _print_tags(row: dict[str, Any]) -> None:
    if "error" in row:
        note(f"tags of attachment {row['source']} did not travel: {row['error']}")
        return
    how = "kept" if row["kept"] else "verified, and made anew"
    blocks = ", ".join(f"{count} {state}" for state, count in row["blocks"].items() if count)
    note(f"tags {how} in attachment {row['attachment']}: {blocks or 'no'} blocks")
    if row["blocks"]["suspect"]:
        note(f"suspect blocks are not known to be right: sealctl pi verify {row['attachment']}")


def _print_plan(console: Console, result: dict[str, Any]) -> None:
    made = Listing("SOURCE", "DESTINATION", "LENGTH", "STRATEGY", "THEN", "NOT TAKEN HERE")
    for piece in result["plan"]:
        numbers = (exact_size(piece[name]) for name in ("source", "destination", "length"))
        strategy = piece["strategy"] + (" (measured here)" if piece["measured_here"] else "")
        why = "; ".join(f"{name}: {reason}" for name, reason in piece["not_taken"].items())
        made.add_row(*numbers, strategy, ", ".join(piece["then"]), printable(why))
    console.print(made)
    if result["more"]:
        console.print(f"... and {result['more']} more")
    sealed = "both files are sealed during the copy" if result["sealed"] else "no seals are taken: "
    console.print(printable(sealed + result["unsealed_why"]))
    for name, reason in result["not_used"].items():
        console.print(printable(f"not {name}: {reason}"))


def _print_trust(console: Console, report: CopyTrustReport) -> None:
    if not report.rows:
        note("nothing was measured yet")
        return
    made = Listing("PAIR", "STRATEGY", "RATE", "SELF-TEST", "WHEN", "NOTE")
    for row in report.rows:
        rate = "-" if row.rate is None else f"{about_size(int(row.rate))}/s"
        made.add_row(
            *map(printable, (row.pair, row.strategy, rate, row.self_test or "-")),
            moment(row.at),
            printable(row.note or "-"),
        )
    console.print(made)
