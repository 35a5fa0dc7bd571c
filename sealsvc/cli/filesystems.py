"""sealctl filesystems: where seals can be kept."""

from __future__ import annotations

import click
from rich.console import Console

from sealsvc.cli.answers import ask
from sealsvc.cli.listing import Listing
from sealsvc.cli.options import Settings, pass_settings, shared_options
from sealsvc.cli.output import emit
from sealsvc.cli.units import exact_size
from sealsvc.core.display import printable
from sealsvc.protocol.system import FilesystemInfo, FilesystemList, Filesystems

EXAMPLES = """\b
Examples:
  sealctl filesystems
  sealctl filesystems -o json | jq '.filesystems[] | select(.supported) | .mount'
"""


@click.command(epilog=EXAMPLES)
@shared_options
@pass_settings
def filesystems(settings: Settings) -> None:
    """List the file systems below the allowed roots, their enforcers and known gaps."""
    with settings.connect() as client:
        answer = ask(client, Filesystems, FilesystemList)
    emit(settings, answer, lambda console: _print(console, answer.filesystems))


def _print(console: Console, found: list[FilesystemInfo]) -> None:
    made = Listing(
        "MOUNT", "TYPE", "DEVICE", "BLOCK", "FEATURES", "SEALS", "ENFORCERS", "REASON",
        right=["BLOCK", "SEALS"],
    )  # fmt: skip
    for fs in found:
        row = (fs.mount, fs.type, fs.device, exact_size(fs.block_size), _features(fs))
        enforcers = ", ".join(fs.enforcers) if fs.supported else "unsupported"
        made.add_row(*map(printable, (*row, str(fs.seals), enforcers, fs.reason or "-")))
    console.print(made)
    _print_gaps(console, found)


def _print_gaps(console: Console, found: list[FilesystemInfo]) -> None:
    gaps = [(fs.mount, gap) for fs in found for gap in fs.gaps]
    if not gaps:
        return
    made = Listing("GAP", "MOUNT", "KINDS", "WHY")
    for mount, gap in gaps:
        kinds = ", ".join(kind.value for kind in gap.kinds)
        made.add_row(*map(printable, (gap.risk, mount, kinds, gap.why)))
    console.print()
    console.print(made)


def _features(fs: FilesystemInfo) -> str:
    has = {"reflink": fs.reflink, "dax": fs.dax, "pmem": fs.pmem is not None}
    present = [name for name, there in has.items() if there]
    return ", ".join(present) or "-"
