"""sealctl map: the extent map of a file as it is now."""

from __future__ import annotations

import os
import stat
import sys

import click
import msgspec
from rich.console import Console

from sealsvc.cli.drawing import drawing, extent_table
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.paths import absolute
from sealsvc.cli.units import about_size
from sealsvc.client import Client
from sealsvc.client.paging import every_seal
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Kind
from sealsvc.protocol.seals import Extent

EXAMPLES = """\b
Examples:
  sealctl map /pmem/db
  sealctl map /pmem/db --limit 0                     # every extent
  sealctl map /pmem/db -o json | jq .summary
"""

_WIDEST = 160
_PIPE_WIDTH = 80

# A look at a file should not hang on a service that does.
_ASK_TIMEOUT = 2.0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`runs`: stretches contiguous both in the file and on the device. `holes`: bytes below
    `size` without an extent. `flags`: extents with each flag."""

    extents: int
    runs: int
    mapped: int
    holes: int
    flags: dict[str, int]


class ExtentMap(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="extent-map"):
    path: str
    size: int
    summary: Summary
    extents: list[Extent]


@click.command("map", epilog=EXAMPLES)
@click.argument("file", type=click.Path())
@click.option("--limit", type=click.IntRange(0), default=40, help="Rows of the table (40; 0: all).")
@click.option(
    "--static",
    type=click.Choice(["json", "c"]),
    help="The map recorded by FILE's seal, on the devices beneath, for programs that keep one.",
)
@click.option("--force", is_flag=True, help="Open it even if that recalls an exclusive seal.")
@shared_options
@pass_settings
def map_command(settings: Settings, file: str, limit: int, static: str | None, force: bool) -> None:
    """Draw FILE's extent map: how fragmented it is, and where it lies on the device.

    The service is not needed. FILE has to be opened, and that recalls an exclusive seal: then
    `sealctl show --extents ID` tells the recorded map instead.
    """
    if static:
        _print_static(settings, file, static)
        return
    if not force:
        _spare_exclusive_seals(settings, file)
    found = _read(file)
    emit(settings, found, lambda console: _print(console, found, limit))


def _print_static(settings: Settings, file: str, form: str) -> None:
    from sealsvc.exports.static_map import as_c, static_map

    with settings.connect() as client:
        found = static_map(client, absolute(file))
    click.echo(as_c(found) if form == "c" else msgspec.json.format(msgspec.json.encode(found)))


def _spare_exclusive_seals(settings: Settings, file: str) -> None:
    try:
        with Client(settings.socket, timeout=_ASK_TIMEOUT) as client:
            for seal in every_seal(client, path=absolute(file)):
                if seal.kind is Kind.EXCLUSIVE:
                    raise Refusal(
                        "seal-conflict",
                        f"opening it would recall the exclusive seal {seal.id}; for the recorded"
                        f" map: sealctl show --extents {seal.id} (--force opens it all the same)",
                        {"seals": [seal.id]},
                    )
    except TimeoutError:
        return
    except Refusal as refusal:
        if refusal.code == "seal-conflict":
            raise
        # No service, no seal; and whoever may not ask it about the file may still open it.


def _read(file: str) -> ExtentMap:
    # The native module is large, and no other command needs it.
    from sealsvc.core.extents import flag_names
    from sealsvc.linux.native import read_extents

    # O_NONBLOCK: neither FIFOs nor leases hang us.
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refusal("not-a-regular-file", f"{file} is not a regular file")
        rows = read_extents(fd, None, sync=True).tolist()
    finally:
        os.close(fd)
    extents = [
        Extent(logical=logical, physical=physical, length=length, flags=flag_names(flags))
        for logical, physical, length, flags in rows
    ]
    return ExtentMap(
        path=printable(file),
        size=status.st_size,
        summary=summarise(extents, status.st_size),
        extents=extents,
    )


def summarise(extents: list[Extent], size: int) -> Summary:
    runs, below_size = 0, 0
    flags: dict[str, int] = {}
    before: Extent | None = None
    for extent in extents:
        runs += before is None or not _adjoin(before, extent)
        below_size += max(0, min(extent.logical + extent.length, size) - extent.logical)
        for flag in extent.flags:
            flags[flag] = flags.get(flag, 0) + 1
        before = extent
    return Summary(
        extents=len(extents),
        runs=runs,
        mapped=sum(extent.length for extent in extents),
        holes=size - below_size,
        flags=flags,
    )


def _adjoin(before: Extent, after: Extent) -> bool:
    return (
        before.logical + before.length == after.logical
        and before.physical + before.length == after.physical
    )


def _print(console: Console, found: ExtentMap, limit: int) -> None:
    summary = found.summary
    console.print(
        f"{found.path}: {about_size(found.size)}, {summary.extents} extents in {summary.runs}"
        f" contiguous runs, {about_size(summary.mapped)} mapped,"
        f" {about_size(summary.holes)} in holes"
    )
    if summary.flags:
        console.print(", ".join(f"{n} {flag}" for flag, n in sorted(summary.flags.items())))
    console.print()
    console.print(extent_table(found.extents, limit or None))
    if limit and (more := summary.extents - limit) > 0:
        console.print(f"... and {more} more (--limit 0 shows all)")
    _draw(console, found)


def _draw(console: Console, found: ExtentMap) -> None:
    ends = [extent.logical + extent.length for extent in found.extents]
    whole = max([found.size, *ends])
    if whole == 0:
        return
    width = min(console.width, _WIDEST) if sys.stdout.isatty() else _PIPE_WIDTH
    console.print()
    ascii_only = not console.encoding.startswith("utf")
    console.print(drawing(found.extents, whole, width, ascii_only))
