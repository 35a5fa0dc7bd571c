"""sealctl hold: run a command that holds a seal."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

import click

from sealsvc.cli.child import NOT_FOUND, StoppedChild
from sealsvc.cli.holding import Holding
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import note
from sealsvc.cli.parameters import DURATION, RANGE, SIGNAL, Words, choice
from sealsvc.cli.paths import absolute
from sealsvc.cli.progress import waiting
from sealsvc.client import Reply
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, Fence, IoMode, Kind, Preparation, Requirements
from sealsvc.protocol.seals import HolderSpec

EXAMPLES = """\b
Examples:
  sealctl hold /pmem/db -- ./server                 # descriptor number in $SEALSVC_FD
  sealctl hold /pmem/db --range 1M:64K --kind shared --iomode read -- ./reader
  sealctl hold /pmem/vm.img --fd 9 --prepare allocate,convert --grace 30s \\
      -- qemu-system-x86_64 -object memory-backend-file,mem-path=/proc/self/fd/9,...
  sealctl hold f --recall-signal USR1 --fence kill -- ./rdma-target
"""


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path())
@click.argument("command", metavar="-- CMD [ARG]...", nargs=-1, required=True)
@click.option("--range", "span", type=RANGE, help="Bytes to seal (the whole file).")
@click.option("--kind", type=choice(Kind), default=Kind.EXCLUSIVE.value, show_default=True)
@click.option(
    "--conflict",
    type=choice(Conflict),
    default=Conflict.WAIT.value,
    show_default=True,
    help="What a conflicting operation meets: it waits for the recall, or gets ETXTBSY.",
)
@click.option("--iomode", type=choice(IoMode), default=IoMode.RW.value, show_default=True)
@click.option(
    "--prepare", type=Words(Preparation), multiple=True, help="What may be done to the file first."
)
@click.option(
    "--require",
    type=Words(Requirements.__struct_fields__),
    multiple=True,
    help="What CMD's mapping must be (fsdax).",
)
@click.option(
    "--fence",
    type=choice(Fence),
    default=Fence.NONE.value,
    show_default=True,
    help="What happens to CMD when it misses a recall's deadline.",
)
@click.option("--grace", type=DURATION, default=10.0, help="Time a recall leaves CMD (10s).")
@click.option("--ttl", type=DURATION, default=0.0, help="Life of the seal (0: unlimited).")
@click.option("--tag", default="", help="A note of yours, shown with the seal.")
@click.option(
    "--recall-signal",
    type=SIGNAL,
    default=signal.SIGTERM,
    help="Signal that tells CMD of a recall (TERM).",
)
@click.option("--fd", "target_fd", type=click.IntRange(0, 1023), help="CMD's descriptor number.")
@click.option(
    "--return-wait",
    type=DURATION,
    default=5.0,
    help="After CMD: time for what it left running to unmap the range (5s).",
)
@shared_options
@pass_settings
def hold(
    settings: Settings,
    /,
    file: str,
    command: tuple[str, ...],
    span: ByteRange | None,
    recall_signal: signal.Signals,
    target_fd: int | None,
    return_wait: float,
    **terms: Any,
) -> int:
    """Seal FILE and run CMD as the holder.

    CMD starts when the seal is granted and inherits the sealed descriptor: its number is in
    SEALSVC_FD, the seal's id in SEALSVC_SEAL. A recall reaches it as a signal. When CMD has ended
    the seal is returned. The exit status is CMD's (128+N when signal N ended it); without a grant
    nothing runs, and the status tells why.
    """
    path = absolute(file)
    if shutil.which(command[0]) is None:
        note(f"{command[0]}: command not found; nothing was sealed")
        return NOT_FOUND
    fields = _terms(span, **terms)
    with settings.connect(patient=True) as client:
        child = StoppedChild(command, target_fd)
        try:
            with waiting(f"preparing and sealing {path}"):
                reply = client.grant(
                    [child.pidfd], path=path, holder=HolderSpec(pidfd=True), **fields
                )
            fd = _sealed_fd(reply)
        except BaseException:  # Ctrl-C included: the child must not stay behind, stopped
            child.abandon()
            raise
        return Holding(client, child, reply.seal, recall_signal).run(fd, return_wait)


def _terms(
    span: ByteRange | None,
    *,
    kind: str,
    conflict: str,
    iomode: str,
    fence: str,
    prepare: tuple[tuple[str, ...], ...],
    require: tuple[tuple[str, ...], ...],
    grace: float,
    ttl: float,
    tag: str,
) -> dict[str, Any]:
    """The options as fields of a Grant."""
    preparations = dict.fromkeys(word for words in prepare for word in words)
    required = {word: True for words in require for word in words}
    return {
        "kind": Kind(kind),
        "conflict": Conflict(conflict),
        "iomode": IoMode(iomode),
        "fence": Fence(fence),
        "prepare": [Preparation(word) for word in preparations],
        "require": Requirements(**required),
        "grace": grace,
        "ttl": ttl,
        "tag": tag,
    } | ({"offset": span.offset, "length": span.length} if span else {})


def _sealed_fd(reply: Reply) -> int:
    if len(reply.fds) != 1:
        for fd in reply.fds:
            os.close(fd)
        raise Refusal("internal", f"the service sent {len(reply.fds)} descriptors, not one")
    return reply.fds[0]
