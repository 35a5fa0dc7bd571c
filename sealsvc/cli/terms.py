"""sealctl return, renew, downgrade: what a holder, or an operator for it, changes of a seal."""

from __future__ import annotations

import click

from sealsvc.cli.answers import ask
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, note, state_text
from sealsvc.cli.parameters import DURATION, RANGE
from sealsvc.cli.seals import complete_seal, find_seal
from sealsvc.cli.units import duration, exact_range
from sealsvc.core.model import ByteRange
from sealsvc.protocol.seals import Downgrade, Renew, Return, SealInfo

RETURN_EXAMPLES = """\b
Examples:
  sealctl return 5f1e                    # its holder has closed and unmapped it
  sealctl return 5f1e --range 1M:1M      # the last half of a 2 MiB range
"""

RENEW_EXAMPLES = """\b
Examples:
  sealctl renew 5f1e                     # its ttl begins anew
  sealctl renew 5f1e --ttl 10m
"""

DOWNGRADE_EXAMPLES = """\b
Examples:
  sealctl downgrade 5f1e
"""

_seal = click.argument("seal", metavar="ID", shell_complete=complete_seal)


@click.command("return", epilog=RETURN_EXAMPLES)
@_seal
@click.option("--range", "span", type=RANGE, help="Only this part, at one end of the sealed range.")
@shared_options
@pass_settings
def return_command(settings: Settings, seal: str, span: ByteRange | None) -> None:
    """Give the seal with this ID back, or a part of it.

    It is refused while any process still maps what is given back.
    """
    with settings.connect() as client:
        info = ask(client, Return, SealInfo, seal=find_seal(client, seal), range=span)
    _emit(settings, info)


@click.command(epilog=RENEW_EXAMPLES)
@_seal
@click.option("--ttl", type=DURATION, help="The new ttl (the seal's own; 0: without end).")
@shared_options
@pass_settings
def renew(settings: Settings, seal: str, ttl: float | None) -> None:
    """Have the ttl of the seal with this ID begin anew."""
    with settings.connect() as client:
        info = ask(client, Renew, SealInfo, seal=find_seal(client, seal), ttl=ttl)
    _emit(settings, info)
    if info.expires_in is not None:
        note(f"it expires in {duration(info.expires_in)}")


@click.command(epilog=DOWNGRADE_EXAMPLES)
@_seal
@shared_options
@pass_settings
def downgrade(settings: Settings, seal: str) -> None:
    """Have the holder of the seal with this ID only read from now on.

    It is refused while the holder maps the range writably.
    """
    with settings.connect() as client:
        info = ask(client, Downgrade, SealInfo, seal=find_seal(client, seal))
    _emit(settings, info)


def _emit(settings: Settings, info: SealInfo) -> None:
    emit(
        settings,
        info,
        lambda console: console.print(info.id, state_text(info.state), exact_range(info.range)),
    )
