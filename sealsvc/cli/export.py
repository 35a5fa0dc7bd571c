"""sealctl export: a sealed file as a block device."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from rich.console import Console

from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit, fields
from sealsvc.cli.parameters import DURATION, Words, choice
from sealsvc.cli.paths import absolute
from sealsvc.cli.units import about_size, duration
from sealsvc.client import socket_path
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Fence, Kind, Preparation
from sealsvc.exports.base import Spec
from sealsvc.exports.drivers import DRIVERS
from sealsvc.exports.info import ExportInfo, ExportList, export_info
from sealsvc.exports.launch import ENDED, create, recover, run, stop
from sealsvc.exports.runtime import Runtime

EXAMPLES = """\b
Examples:
  sealctl export create --type nbd disk /srv/disk.img
  sealctl export create --type dm --grace 5s disk /srv/disk.img
  sealctl export ls
  sealctl export show disk
  sealctl export stop disk
"""
# How long the device may take to be there: preparing a large file writes all of it.
_READY = 600.0


@click.group(epilog=EXAMPLES)
def export() -> None:
    """Serve a sealed file as a block device: a recall of its seal is a pause of the device."""


def _terms(function: Any) -> Any:
    for option in reversed((
        click.argument("name"),
        click.argument("file", type=click.Path()),
        click.option(
            "--type",
            "driver",
            type=click.Choice([driver.type for driver in DRIVERS]),
            required=True,
            help="; ".join(f"{driver.type}: {driver.summary}" for driver in DRIVERS) + ".",
        ),
        click.option("--kind", type=choice(Kind), default="exclusive", show_default=True),
        click.option(
            "--fence",
            type=choice(Fence),
            default="kill",
            show_default=True,
            help="What happens to the export's process when it misses a recall's deadline.",
        ),
        click.option(
            "--prepare",
            type=Words(Preparation),
            multiple=True,
            help="What may be done to the file before each seal (allocate,convert).",
        ),
        click.option("--grace", type=DURATION, default=10.0, help="Time a recall leaves it (10s)."),
        click.option(
            "--patience",
            type=DURATION,
            default=0.0,
            help="Longest wait of a request during a pause, after which it fails (0: none).",
        ),
        click.option(
            "--initiator-timeout",
            type=DURATION,
            default=0.0,
            help="Smallest time-out of who sends requests to it (0: the type's own).",
        ),
        click.option("--read-only", is_flag=True),
        click.option(
            "--io",
            type=click.Choice(["auto", "mapped", "direct"]),
            default="auto",
            show_default=True,
            help="How the file is used: auto is mapped where it has DAX.",
        ),
        click.option(
            "--discard",
            type=click.Choice(["refuse", "recall"]),
            default="refuse",
            show_default=True,
            help="recall: a pause in which the range is punched, allocated anew and sealed.",
        ),
        click.option(
            "--restart",
            is_flag=True,
            help="Start its process again at once whenever it dies: no `recover` is needed.",
        ),
        click.option(
            "-O",
            "options",
            metavar="KEY=VALUE",
            multiple=True,
            help="An option of the type (docs/exports.md).",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


def _spec(
    settings: Settings,
    *,
    name: str,
    file: str,
    driver: str,
    prepare: tuple[tuple[str, ...], ...],
    options: tuple[str, ...],
    **terms: Any,
) -> Spec:
    chosen = [word for words in prepare for word in words] or ["allocate", "convert"]
    if terms["read_only"] and not prepare:
        chosen = []
    for option in options:
        if "=" not in option:
            raise click.UsageError(f"-O {option}: KEY=VALUE is wanted")
    raw = terms | {
        "name": name,
        "type": driver,
        "file": absolute(file),
        "prepare": chosen,
        "socket": settings.socket or socket_path(),
        "options": dict(option.split("=", 1) for option in options),
    }
    try:
        return msgspec.convert(raw, Spec)
    except msgspec.ValidationError as error:
        raise Refusal("bad-request", str(error)) from None


@export.command("create")
@_terms
@shared_options
@pass_settings
def create_command(settings: Settings, /, **terms: Any) -> None:
    """Serve FILE as the export NAME, by a process of its own, and tell where the device is."""
    runtime = Runtime()
    record = create(_spec(settings, **terms), runtime, settings.timeout or _READY)
    info = export_info(record, runtime)
    emit(settings, info, lambda console: console.print(printable(record.device)))


@export.command("run")
@_terms
@shared_options
@pass_settings
def run_command(settings: Settings, /, **terms: Any) -> int:
    """Serve FILE in this process until SIGTERM (for systemd: sealsvc-export@.service). What an
    earlier process of the export left, if one died, is taken up again."""
    spec, runtime = _spec(settings, **terms), Runtime()
    return run(spec, runtime, recover=runtime.find(spec.name) is not None)


@export.command("ls")
@shared_options
@pass_settings
def ls_command(settings: Settings) -> None:
    """List exports."""
    runtime = Runtime()
    found = ExportList(exports=[export_info(record, runtime) for record in runtime.records()])
    emit(settings, found, lambda console: console.print(_table(found.exports)))


def _table(exports: list[ExportInfo]) -> Listing:
    made = Listing(
        *("NAME", "TYPE", "STATE", "DEADLINE", "PAUSES", "SIZE", "DEVICE", "FILE"),
        right=["PAUSES", "SIZE"],
        optional=["SIZE", "PAUSES", "DEADLINE"],
    )
    for info in exports:
        size = about_size(info.counters.device_size) if info.counters else "-"
        stacked = f"{duration(info.timeouts.recall)} < {duration(info.timeouts.initiator)}"
        made.add_row(
            info.name, info.driver, info.state, stacked, str(round(info.pauses.get("count", 0))),
            size, printable(info.device), printable(info.file),
        )  # fmt: skip
    return made


@export.command("show")
@click.argument("name")
@shared_options
@pass_settings
def show_command(settings: Settings, name: str) -> None:
    """Show an export: its counters, pauses and time-outs."""
    runtime = Runtime()
    info = export_info(runtime.read(name), runtime)
    emit(settings, info, lambda console: _print(console, info))


def _print(console: Console, info: ExportInfo) -> None:
    times = info.timeouts
    patience = duration(times.patience) if times.patience else "for ever"
    rows = [
        ("name", info.name),
        ("type", info.driver),
        ("state", info.state + (f" for {duration(info.paused_for)}" if info.paused_for else "")),
        ("why", info.why),
        ("device", info.device),
        ("file", info.file),
        ("process", str(info.pid)),
        ("seal", info.seal),
        (
            "time-outs",
            f"recall {duration(times.recall)} < initiator {duration(times.initiator)}"
            f" ({times.whose}); requests wait {patience}",
        ),
        ("pauses", _times(info.pauses)),
        *((op, _times(found)) for op, found in info.latency.items()),
        *((key, str(value)) for key, value in info.details.items()),
    ]
    if info.counters is not None:
        rows += [
            ("in flight", str(info.counters.in_flight)),
            ("errors", str(info.counters.errors)),
            ("seals", str(info.counters.seals)),
        ]
    console.print(fields([row for row in rows if row[1]]))


def _times(found: dict[str, float]) -> str:
    if not found or not found["count"]:
        return "none" if found else ""
    return (
        f"{round(found['count'])}: p50 {found['p50']:.3g} ms, p99 {found['p99']:.3g} ms,"
        f" longest {found['longest']:.3g} ms"
    )


@export.command("stop")
@click.argument("name")
@click.option("--force", is_flag=True, help="Even while it is in use: requests fail.")
@shared_options
@pass_settings
def stop_command(settings: Settings, name: str, force: bool) -> None:
    """End an export: remove the device, return the seal."""
    stop(name, Runtime(), settings.timeout or ENDED, force=force)


@export.command("recover")
@click.argument("name")
@shared_options
@pass_settings
def recover_command(settings: Settings, name: str) -> None:
    """Serve an export again whose process has died."""
    runtime = Runtime()
    record = recover(name, runtime, settings.timeout or _READY)
    emit(settings, export_info(record, runtime), lambda out: out.print(printable(record.device)))
