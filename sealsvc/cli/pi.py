"""sealctl pi: protection information of sealed files (docs/integrity.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.parameters import DURATION, RANGE, Parsed, choice
from sealsvc.cli.seals import complete_seal, find_seal
from sealsvc.cli.units import about_size, exact_range, moment, parse_size
from sealsvc.client import Client
from sealsvc.core.display import printable
from sealsvc.core.model import ByteRange
from sealsvc.protocol.integrity import (
    PiAbility,
    PiAttach,
    PiAttachment,
    PiAttachmentList,
    PiAttachments,
    PiBless,
    PiDetach,
    PiError,
    PiErrorPage,
    PiErrors,
    PiOpen,
    PiProfileList,
    PiProfiles,
    PiQuery,
    PiReport,
    PiScrub,
    PiTag,
    PiVerify,
    Writes,
)

EXAMPLES = """\b
Examples:
  sealctl pi profiles
  sealctl pi query /mnt/pmem/db
  sealctl pi attach SEAL --profile crc32c-4k
  sealctl pi verify ID && echo "as it was tagged"
  sealctl pi scrub ID --rate 50M
  sealctl pi errors --wait 1m
  sealctl pi bless ID --range 80K:4K
"""

WRONG = 8  # as for a map that has drifted
_ATTACHMENT_ID = 16  # hex digits
_VERDICTS = {"good": "green", "open": "yellow", "unstable": "yellow"}

RATE = Parsed("SIZE", parse_size)
Command = Callable[..., Any]


@click.group(epilog=EXAMPLES)
def pi() -> None:
    """Protection information: tags of sealed files, and what does not agree with them."""


def _which(command: Command) -> Command:
    """WHICH: an attachment by its id, or the seal of the file that has one."""
    argument = click.argument("which", metavar="ATTACHMENT|SEAL", shell_complete=complete_seal)
    return argument(command)


def _named(client: Client, which: str) -> dict[str, Any]:
    if len(which) == _ATTACHMENT_ID:
        return {"attachment": which}
    return {"seal": find_seal(client, which)}


@pi.command()
@shared_options
@pass_settings
def profiles(settings: Settings) -> None:
    """List the profiles, and which code computes each here.

    Files in integrity.profiles that are no profiles are told with the reason.
    """
    with settings.connect() as client:
        found = ask(client, PiProfiles, PiProfileList)
    emit(settings, found, lambda console: _print_profiles(console, found))


def _print_profiles(console: Console, found: PiProfileList) -> None:
    made = Listing("NAME", "DATA", "TAG", "FIELDS", "CHECKSUM", "CODE", right=["DATA", "TAG"])
    for row in found.profiles:
        size = str(row.keys["granularity"] or "stream")
        fields = ",".join(f"{name}:{width}" for name, _, width, _ in row.fields)
        checksum = str(row.keys.get("checksum-alg", "-"))
        made.add_row(row.name, size, str(row.bytes), fields, checksum, row.variant)
    console.print(made)
    for error in found.errors:
        console.print(printable(error), style="red")


@pi.command()
@click.argument("path")
@shared_options
@pass_settings
def query(settings: Settings, path: str) -> None:
    """Tell who can check protection information of a file or block device."""
    with settings.connect() as client:
        found = ask(client, PiQuery, PiAbility, path=path)
    emit(settings, found, lambda console: _print_ability(console, found))


def _print_ability(console: Console, found: PiAbility) -> None:
    console.print(f"checkers: {', '.join(found.checkers)}")
    if found.device is not None:
        told = found.device
        console.print(
            f"device:   {told.format}: {told.metadata} bytes for each {told.interval}"
            f" ({told.source}); profile {told.profile or 'none'}"
        )
    if (way := found.device_path) is not None:
        there = f"for exclusive seals, profile {way.profile}" if way.available else "none: "
        console.print(f"device path: {there}{way.reason}")
    for line in found.notes:
        console.print(printable(line), style="yellow")


@pi.command()
@click.argument("seal", shell_complete=complete_seal)
@click.option("--profile", required=True, help="Its name (`sealctl pi profiles`).")
@click.option("--tag", type=click.IntRange(0), default=0, help="Value of the application tag.")
@click.option("--storage", type=click.IntRange(0), default=0, help="Value of the storage tag.")
@click.option("--secret", default="", help="Name of a key in integrity.keys.")
@click.option(
    "--writes",
    type=choice(Writes),
    default=Writes.ANY.value,
    help="Does the holder declare what it writes (`pi open`, `pi tag`)? Default: any, it does not.",
)
@click.option("--at-grant", is_flag=True, help="Later grants wait for a verification.")
@click.option("--quiet", is_flag=True, help="The holder does not write meanwhile.")
@shared_options
@pass_settings
def attach(settings: Settings, /, seal: str, **more: Any) -> None:
    """Generate tags of a sealed range, and keep them."""
    with settings.connect(patient=True) as client:
        found = ask(client, PiAttach, PiAttachment, seal=find_seal(client, seal), **more)
    _emit_attachments(settings, PiAttachmentList(attachments=[found]))


@pi.command()
@click.argument("attachment")
@shared_options
@pass_settings
def detach(settings: Settings, attachment: str) -> None:
    """Forget the tags of a file."""
    with settings.connect() as client:
        found = ask(client, PiDetach, PiAttachment, attachment=attachment)
    _emit_attachments(settings, PiAttachmentList(attachments=[found]))


@pi.command()
@click.option("--path", help="Only those of this file.")
@shared_options
@pass_settings
def ls(settings: Settings, path: str | None) -> None:
    """List files with tags, and how many of their blocks are clean, open and suspect."""
    with settings.connect() as client:
        rows: list[PiAttachment] = []
        page = PiAttachmentList(attachments=[], next="0" * _ATTACHMENT_ID)
        while page.next is not None:
            page = ask(client, PiAttachments, PiAttachmentList, path=path, after=page.next)
            rows += page.attachments
    found = PiAttachmentList(attachments=rows)
    _emit_attachments(settings, found)


def _emit_attachments(settings: Settings, found: PiAttachmentList) -> None:
    emit(settings, found, lambda console: _print_attachments(console, found))


def _print_attachments(console: Console, found: PiAttachmentList) -> None:
    made = Listing(
        "ID", "PROFILE", "RANGE", "CLEAN", "OPEN", "SUSPECT", "SCRUB", "PATH",
        right=["CLEAN", "OPEN", "SUSPECT"],
    )  # fmt: skip
    for row in found.attachments:
        counts = [str(row.blocks.get(state, 0)) for state in ("clean", "open", "suspect")]
        progress = "-"
        if row.scrub is not None:
            part = row.scrub.done / max(1, row.scrub.total)
            progress = f"{part:.0%}{'' if row.scrub.running or part == 1 else ' stopped'}"
        style = "red" if row.blocks.get("suspect") else ""
        path = printable(row.path)
        made.add_row(
            row.id, row.profile, exact_range(row.range), *counts, progress, path, style=style
        )
    console.print(made)


def _report(settings: Settings, found: PiReport) -> int:
    emit(settings, found, lambda console: _print_report(console, found))
    return 0 if found.verdict in _VERDICTS else WRONG


def _print_report(console: Console, found: PiReport) -> None:
    counted = ", ".join(f"{count} {kind}" for kind, count in found.blocks.items()) or "no block"
    way = f" (read {found.read})" if found.read else ""
    console.print(f"{found.verdict}: {counted}{way}", style=_VERDICTS.get(found.verdict, "red"))
    _print_errors(console, found.errors)
    if found.more:
        console.print(f"... and {found.more} more", style="yellow")


@pi.command()
@_which
@click.option("--range", type=RANGE, help="Only this part.")
@click.option("--quiet", is_flag=True, help="The holder says that it does not write.")
@shared_options
@pass_settings
def verify(settings: Settings, which: str, range: ByteRange | None, quiet: bool) -> int:
    """Compare data with its tags. The exit status is 8 when something is not as it was tagged."""
    with settings.connect(patient=True) as client:
        named = _named(client, which)
        found = ask(client, PiVerify, PiReport, range=range, quiet=quiet, **named)
    return _report(settings, found)


@pi.command(name="open")
@_which
@click.option("--range", type=RANGE, help="Only this part.")
@shared_options
@pass_settings
def open_command(settings: Settings, which: str, range: ByteRange | None) -> int:
    """Say that the range is about to be written (writes: declared)."""
    with settings.connect() as client:
        found = ask(client, PiOpen, PiReport, range=range, **_named(client, which))
    return _report(settings, found)


@pi.command()
@_which
@click.option("--range", type=RANGE, help="Only this part; of a byte stream, the new PI's.")
@shared_options
@pass_settings
def tag(settings: Settings, which: str, range: ByteRange | None) -> int:
    """Have what was opened and written tagged."""
    with settings.connect(patient=True) as client:
        found = ask(client, PiTag, PiReport, range=range, **_named(client, which))
    return _report(settings, found)


@pi.command()
@_which
@click.option("--range", type=RANGE, help="Only this part.")
@shared_options
@pass_settings
def bless(settings: Settings, which: str, range: ByteRange | None) -> int:
    """Take what suspect blocks hold now for good, and tag it."""
    with settings.connect(patient=True) as client:
        found = ask(client, PiBless, PiReport, range=range, **_named(client, which))
    return _report(settings, found)


@pi.command()
@_which
@click.option("--rate", type=RATE, default=0, help="Bytes a second at most (integrity.scrub_rate).")
@click.option(
    "--cycle",
    type=DURATION,
    default=0.0,
    help="Pass over what was compared so recently, and not written since (none).",
)
@click.option("--restart", is_flag=True, help="From the beginning.")
@click.option("--stop", is_flag=True, help="End it; the next goes on there.")
@shared_options
@pass_settings
def scrub(
    settings: Settings, which: str, rate: int, cycle: float, restart: bool, stop: bool
) -> None:
    """Verify in the background; `pi ls` shows how far it is.

    With --cycle only what is due is read: what changes on the medium alone is found within that
    time. Run it often (from a timer), with a rate that gets through the file in one cycle.
    """
    with settings.connect() as client:
        found = ask(
            client,
            PiScrub,
            PiAttachment,
            rate=rate,
            cycle=cycle,
            restart=restart,
            stop=stop,
            **_named(client, which),
        )
    _emit_attachments(settings, PiAttachmentList(attachments=[found]))


@pi.command()
@click.option("--after", type=click.IntRange(0), default=0, help="Only those after this number.")
@click.option("--wait", type=DURATION, default=0.0, help="So long, until there is one.")
@shared_options
@pass_settings
def errors(settings: Settings, after: int, wait: float) -> int:
    """Tell what was found wrong, the oldest first. The exit status is 8 when there is something."""
    with settings.connect(patient=True) as client:
        page = ask(client, PiErrors, PiErrorPage, after=after, wait=wait)
        found = list(page.errors)
        while page.errors:
            page = ask(client, PiErrors, PiErrorPage, after=page.next)
            found += page.errors
    page = PiErrorPage(errors=found, next=page.next, lost=page.lost)
    emit(settings, page, lambda console: _print_errors(console, found))
    return WRONG if found else 0


def _print_errors(console: Console, found: list[PiError]) -> None:
    if not found:
        return
    made = Listing(
        "SEQ", "TIME", "KIND", "AT", "BLOCK", "BYTES", "FIELD", "EXPECTED", "FOUND", "PHYSICAL",
        "LAST GOOD", "PATH", "DETAIL", right=["SEQ", "BLOCK"],
        optional=["LAST GOOD", "PHYSICAL", "DETAIL"],
    )  # fmt: skip
    for row in found:
        made.add_row(
            str(row.seq),
            moment(row.time),
            row.kind,
            row.at,
            f"{row.block}" + (f" +{row.more}" if row.more else ""),
            f"{row.offset}:{about_size(row.length)}",
            row.field or "-",
            row.expected or "-",
            row.found or "-",
            "-" if row.physical is None else str(row.physical),
            "-" if row.last_good is None else moment(row.last_good),
            printable(row.path),
            _detail(row),
            style="red",
        )
    console.print(made)


def _detail(error: PiError) -> str:
    """What a SCSI disk says as key/code/qualifier, and what the kernel does."""
    said = error.sense
    sense = f"sense {said.key:02X}/{said.asc:02X}/{said.ascq:02X}" if said else ""
    return printable(error.detail or sense) or "-"
