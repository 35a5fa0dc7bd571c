"""sealctl why: what a process that hangs on a file waits for, and what ends it."""

from __future__ import annotations

import os

import click
import msgspec
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.paths import absolute
from sealsvc.cli.units import duration, exact_range
from sealsvc.client import Client
from sealsvc.client.paging import every_seal
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Fence, State
from sealsvc.protocol.admin import ConflictPage, Conflicts, WaitingConflict
from sealsvc.protocol.seals import SealInfo, Show

EXAMPLES = """\b
Examples:
  sealctl why 4711             # the process that hangs
  sealctl why /pmem/db         # the file it hangs on
  sealctl why /pmem/db -o json | jq -r '.waits[].seals[].id'
"""

_NO_SEAL = "process {} waits for no seal"
_AFTER = {
    Fence.NONE: "then conflicting operations get EBUSY until the holder gives it back",
    Fence.SIGNAL: "then the holder is sent a signal",
    Fence.KILL: "then the holder is killed",
}


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """One operation that waits, and the live seals that it waits for."""

    conflict: WaitingConflict
    seals: list[SealInfo]
    hidden: list[str] = []  # live seals of other users, which only operators are shown


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`waits` for seals; without any, `held` are the live seals of the file that was asked about,
    and `note` says what a process that was asked about waits for instead."""

    waits: list[Wait]
    held: list[SealInfo] = []
    note: str = ""


@click.command(epilog=EXAMPLES)
@click.argument("what", metavar="PATH|PID")
@shared_options
@pass_settings
def why(settings: Settings, what: str) -> None:
    """Say what a process, or whoever uses a file, waits for, and which command ends it."""
    pid = int(what) if what.isascii() and what.isdigit() else None
    with settings.connect() as client:
        if pid is None:
            found = _of_file(client, absolute(what))
        else:
            found = _of_process(client, pid, local=not settings.url)
    emit(settings, found, lambda console: _print(console, what, found))


def _of_process(client: Client, pid: int, *, local: bool) -> Explanation:
    waits = [wait for wait in _waits(client) if pid in (wait.operation.pid, wait.operation.tid)]
    if waits:
        return Explanation(waits=[_explained(client, wait) for wait in waits])
    return Explanation(waits=[], note=_otherwise(pid) if local else _NO_SEAL.format(pid))


def _of_file(client: Client, path: str) -> Explanation:
    held = list(every_seal(client, path=path))
    ids = {seal.id for seal in held}
    waits = [w for w in _waits(client) if w.path == path or ids & set(w.seals)]
    return Explanation(
        waits=[_explained(client, wait) for wait in waits], held=[] if waits else held
    )


def _waits(client: Client) -> list[WaitingConflict]:
    return ask(client, Conflicts, ConflictPage, limit=1000).conflicts


def _explained(client: Client, wait: WaitingConflict) -> Wait:
    seals, hidden = [], []
    for seal in wait.seals:
        try:
            seals.append(ask(client, Show, SealInfo, seal=seal))
        except Refusal as refusal:
            if refusal.code != "no-such-seal":  # it ended meanwhile, or is another user's
                raise
            if os.geteuid():
                hidden.append(seal)
    return Wait(conflict=wait, seals=seals, hidden=hidden)


def _otherwise(pid: int) -> str:
    """What the kernel says that a process waits for, which is no seal."""
    try:
        with open(f"/proc/{pid}/wchan", "rb") as file:
            channel = os.fsdecode(file.read())
    except FileNotFoundError:
        raise Refusal("no-such-holder", f"there is no process {pid}") from None
    except OSError as error:
        return f"{_NO_SEAL.format(pid)} ({error.filename}: {error.strerror})"
    if channel in ("", "0"):
        return f"{_NO_SEAL.format(pid)}, and does not sleep in the kernel"
    return f"{_NO_SEAL.format(pid)}; it sleeps in {channel} (kernel)"


def _print(console: Console, what: str, found: Explanation) -> None:
    if found.note:
        console.print(printable(found.note))
    elif not found.waits:
        console.print(printable(f"nothing waits for a seal on {what}"))
        for seal in found.held:
            _print_seal(console, seal)
    for wait in found.waits:
        operation = wait.conflict.operation
        console.print(
            printable(
                f"{operation.name} of {wait.conflict.path} by process {operation.pid}"
                f" ({operation.comm}) has waited {duration(wait.conflict.waits)} for"
            )
        )
        for seal in wait.seals:
            _print_seal(console, seal)
        for id in wait.hidden:
            console.print(f"  seal {id} of another user: ask root or an operator for `sealctl why`")


def _print_seal(console: Console, seal: SealInfo) -> None:
    holder = seal.holder
    tag = f", tag {seal.tag}" if seal.tag else ""
    console.print(
        printable(
            f"  seal {seal.id} ({seal.state}) on {exact_range(seal.range)}, held by process"
            f" {holder.pid} ({holder.comm}), uid {holder.uid}{tag}"
        )
    )
    if seal.reason:
        console.print(printable(f"    reason: {seal.reason}"))
    if seal.deadline_in == 0.0:
        console.print("    deadline: has passed")
    elif seal.deadline_in is not None:
        console.print(f"    deadline: in {duration(seal.deadline_in)}; {_AFTER[seal.fence]}")
    console.print(f"    to end it: {_remedy(seal)}")


def _remedy(seal: SealInfo) -> str:
    """The command of an operator that ends the seal."""
    if seal.state in (State.FENCE_FAILED, State.FENCING, State.ORPHANED):
        return (
            f"end process {seal.holder.pid} and whoever maps the file"
            " (`sudo fuser -v FILE` names them)"
        )
    if seal.state is State.RECALLED and seal.deadline_in:
        return f"wait for the deadline, or end its holder: kill {seal.holder.pid}"
    if seal.state in (State.RECALLED, State.LOST):
        return f"end its holder: kill {seal.holder.pid}"
    return f"sealctl recall {seal.id} --wait"
