"""sealctl: the commands, and how what goes wrong becomes a message and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click
import msgspec

from sealsvc import __version__
from sealsvc.cli.alarms import alarms
from sealsvc.cli.audit import audit
from sealsvc.cli.completion import VARIABLE, completion
from sealsvc.cli.copy import copy
from sealsvc.cli.doctor import doctor
from sealsvc.cli.export import export
from sealsvc.cli.filesystems import filesystems
from sealsvc.cli.history import changes, history
from sealsvc.cli.hold import hold
from sealsvc.cli.ls import ls
from sealsvc.cli.map import map_command
from sealsvc.cli.options import Settings, shared_options
from sealsvc.cli.output import note
from sealsvc.cli.pi import pi
from sealsvc.cli.recall import recall
from sealsvc.cli.redeem import redeem
from sealsvc.cli.relocate import relocate
from sealsvc.cli.show import show
from sealsvc.cli.status import status
from sealsvc.cli.terms import downgrade, renew, return_command
from sealsvc.cli.top import top
from sealsvc.cli.trail import trail
from sealsvc.cli.units import duration
from sealsvc.cli.validate import validate
from sealsvc.cli.watch import watch
from sealsvc.cli.why import why
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import Failure

EXAMPLES = """\b
Examples:
  sealctl hold /pmem/db -- ./server
  sealctl ls
  sealctl map /pmem/db

\b
Exit status: 0 done, 1 failure, 2 usage, 3 denied, 4 not found, 5 unsuitable file, 6 conflict
(try again), 7 service unavailable, 8 drift found; that of `hold` is its command's.
"""

COMMANDS = (
    hold,
    redeem,
    ls,
    show,
    map_command,
    validate,
    renew,
    downgrade,
    return_command,
    recall,
    why,
    watch,
    top,
    copy,
    relocate,
    audit,
    alarms,
    pi,
    history,
    changes,
    trail,
    status,
    filesystems,
    doctor,
    export,
    completion,
)

INTERRUPTED = 130
_UNIT = "/usr/lib/systemd/system/sealsvc.service"

# Of what the system itself refuses us (map, doctor): the exit of the row it resembles.
_SYSTEM_EXITS = {
    errno.ENOENT: 4,
    errno.ENOTDIR: 4,
    errno.EACCES: 3,
    errno.EPERM: 3,
    errno.EOPNOTSUPP: 5,
    errno.ENOTTY: 5,
}


class ReportingGroup(click.Group):
    """Turns what the service or the system refuses into a message and an exit status, here and
    nowhere else: the one place that still knows the command's options."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """With whole summaries, wrapped: click would cut them."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(n, found.get_short_help_str(1000)) for n, found in named if found is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> int:
        try:
            result = super().invoke(ctx)
        except Refusal as refusal:
            return _report(ctx, refusal)
        except TimeoutError as error:
            advice = "It is there, but busy or stuck. --timeout allows it more time."
            return _report(ctx, Refusal("service-unavailable", str(error)), advice)
        except BrokenPipeError:
            raise  # whoever read our output has seen enough; click leaves quietly
        except OSError as error:
            note(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            return _SYSTEM_EXITS.get(error.errno or 0, 1)
        return result if isinstance(result, int) else 0


def _report(ctx: click.Context, refusal: Refusal, advice: str = "") -> int:
    row = refusal.row
    settings = Settings.of(ctx)
    if settings.json:
        failure = Failure(
            id=None,
            code=refusal.code,
            message=refusal.message,
            details=refusal.details,
            retry_after=refusal.retry_after,
        )
        click.echo(msgspec.json.encode(failure), err=True)
        return row.exit
    note(str(refusal))
    after = "" if refusal.retry_after is None else f" Retry in {duration(refusal.retry_after)}."
    click.echo(f"  {advice or _advice(settings, refusal)}{after}", err=True)
    return row.exit


def _advice(settings: Settings, refusal: Refusal) -> str:
    """That of the error's row, or what fits this installation better."""
    if refusal.code != "service-unavailable":
        return refusal.row.advice
    if settings.url:
        return "Start it (`systemctl start sealsvc-api`), or correct --url (SEALSVC_URL)."
    if settings.socket or os.environ.get("SEALSVC_SOCKET"):
        return "Is that the socket of a service? See --socket and SEALSVC_SOCKET."
    if os.path.exists(_UNIT):
        return "Start it: systemctl start sealsvc"
    return "Start it: sealsvc serve (or point SEALSVC_SOCKET at its socket)"


@click.group(
    cls=ReportingGroup,
    epilog=EXAMPLES,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="sealctl")
@shared_options
def sealctl() -> None:
    """Hold, watch and recall extent-map seals."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    try:
        return int(sealctl.main(arguments, "sealctl", VARIABLE, standalone_mode=False))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
