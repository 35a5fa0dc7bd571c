"""sealctl redeem: run a command with a seal that somebody else asked for."""

from __future__ import annotations

import os
import sys

import click

from sealsvc.cli.child import named_as
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import Redeem

EXAMPLES = """\b
Examples:
  sealctl redeem "$CLAIM" -- ./server     # the server itself becomes the holder
  sealctl redeem - -- ./server < claim    # so that the claim is in no process list
"""


@click.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True})
@click.argument("claim")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@shared_options
@pass_settings
def redeem(settings: Settings, claim: str, command: tuple[str, ...]) -> None:
    """Take up the seal that CLAIM stands for, and become COMMAND.

    COMMAND finds the sealed descriptor in SEALSVC_FD and the seal's id in SEALSVC_SEAL, and is the
    seal's holder. Its recalls reach it when it says Reclaim on a connection of its own.
    """
    if settings.url:
        raise click.UsageError("a claim is redeemed on the control socket, not over --url")
    if claim == "-":
        claim = sys.stdin.readline().strip()
    with named_as(command[0]), Client(settings.socket) as client:
        reply = client.call(Redeem, claim=claim)
    seal, (fd,) = reply.seal, reply.fds
    os.set_inheritable(fd, True)
    environment = {**os.environ, "SEALSVC_FD": str(fd), "SEALSVC_SEAL": seal.id}
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise Refusal("bad-request", f"{command[0]}: {error.strerror}") from None
