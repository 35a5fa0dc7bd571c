"""sealctl show: everything about one seal."""

from __future__ import annotations

import time

import click
import msgspec
from rich.console import Console
from rich.text import Text

from sealsvc.cli.answers import ask
from sealsvc.cli.drawing import extent_table
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, fields, state_text
from sealsvc.cli.seals import complete_seal, find_seal, waiting_for
from sealsvc.cli.units import duration, exact_range, moment
from sealsvc.client import Client
from sealsvc.core.model import ByteRange
from sealsvc.protocol.admin import WaitingConflict
from sealsvc.protocol.seals import Extent, ExtentPage, Extents, LadderStep, SealInfo, Show

EXAMPLES = """\b
Examples:
  sealctl show 5f1e
  sealctl show 5f1e --extents            # the extent map recorded at grant
  sealctl show 5f1e -o json | jq .state
"""


@click.command(epilog=EXAMPLES)
@click.argument("seal", metavar="ID", shell_complete=complete_seal)
@click.option("--extents", is_flag=True, help="Show the recorded extent map instead.")
@shared_options
@pass_settings
def show(settings: Settings, seal: str, extents: bool) -> None:
    """Show the seal whose id is, or begins or ends with, ID."""
    with settings.connect() as client:
        seal_id = find_seal(client, seal, past=True)
        if extents:
            recorded = _recorded(client, seal_id)
            page = ExtentPage(extents=recorded, total=len(recorded))
            emit(settings, page, lambda console: console.print(extent_table(recorded)))
        else:
            info = ask(client, Show, SealInfo, seal=seal_id)
            waiting = [] if settings.json else waiting_for(client, [info])
            emit(settings, info, lambda console: _print(console, info, waiting))


def _recorded(client: Client, seal: str) -> list[Extent]:
    extents: list[Extent] = []
    start: int | None = 0
    while start is not None:
        page = ask(client, Extents, ExtentPage, seal=seal, start=start)
        extents += page.extents
        start = page.next
    return extents


def _print(console: Console, seal: SealInfo, waiting: list[WaitingConflict]) -> None:
    rows = [("" if n else "waiting", _operation(w)) for n, w in enumerate(waiting)]
    console.print(fields([*_promise(seal), *_course(seal), *rows]))


def _operation(wait: WaitingConflict) -> str:
    by = wait.operation
    return f"{by.name} by process {by.pid} ({by.comm}), for {duration(wait.waits)}"


def _promise(seal: SealInfo) -> list[tuple[str, str | Text]]:
    required = [name for name, wanted in msgspec.structs.asdict(seal.require).items() if wanted]
    return [
        ("id", seal.id),
        ("path", seal.path),
        ("file", str(seal.file)),
        ("filesystem", seal.filesystem),
        ("range", _range(seal.range)),
        ("effective", _range(seal.effective)),
        ("extents", str(seal.extents)),
        ("kind", seal.kind.value),
        ("iomode", seal.iomode.value),
        ("conflict", seal.conflict.value),
        ("fence", f"{seal.fence.value} ({seal.fence_class.value})"),
        ("grace", duration(seal.grace)),
        ("ttl", duration(seal.ttl) if seal.ttl else "unlimited"),
        ("require", _list(required)),
        ("enforcers", _list(seal.enforcers)),
        ("accepted risks", _list(seal.accepted_risks)),
        ("tag", seal.tag or "-"),
    ]


def _course(seal: SealInfo) -> list[tuple[str, str | Text]]:
    holder = seal.holder
    return [
        ("holder", f"{holder.pid} ({holder.comm}), uid {holder.uid}"),
        ("state", state_text(seal.state)),
        ("seqid", str(seal.seqid)),
        ("reason", seal.reason or "-"),
        ("granted", _when(seal.granted_at)),
        ("state since", _when(seal.state_since)),
        ("deadline", _until(seal.deadline_in)),
        ("expires", _until(seal.expires_in)),
        ("wanted", _range(seal.wanted) if seal.wanted else "-"),
        *(("" if n else "ladder", _rung(step)) for n, step in enumerate(seal.ladder)),
    ]


def _rung(step: LadderStep) -> str:
    return f"{_when(step.time)}  {step.step}" + (f": {step.detail}" if step.detail else "")


def _range(span: ByteRange) -> str:
    return f"{exact_range(span)} (bytes {span.offset} to {span.end - 1})"


def _list(names: list[str]) -> str:
    return ", ".join(names) or "-"


def _when(epoch: float) -> str:
    return f"{moment(epoch)} ({duration(time.time() - epoch)} ago)"


def _until(seconds: float | None) -> str:
    return "-" if seconds is None else f"in {duration(seconds)}"
