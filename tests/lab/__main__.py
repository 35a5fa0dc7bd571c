"""Run a command in the lab: `python -m tests.lab [OPTIONS] -- COMMAND…`.

The exit status is the command's; 77: there is no lab here; 125: the guest did not live to the
command's end.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path

from tests.lab import DEFAULT, SERIES, LabError, Machine, Unavailable, run
from tests.lab.qemu import MACHINE, MiB


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    machine = Machine(
        cpus=options.cpus,
        memory=options.memory,
        pmem=tuple(size for size in options.pmem or MACHINE.pmem if size),
        nvme=tuple(options.nvme),
    )
    try:
        return run(
            options.command,
            options.kernel,
            timeout=options.timeout,
            machine=machine,
            share=options.share,
            echo=True,
        ).status
    except (Unavailable, LabError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 77 if isinstance(error, Unavailable) else 125
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev lab", description="Run a command in a virtual machine with persistent memory."
    )
    parser.add_argument(
        "--kernel", default=DEFAULT, help=f"{', '.join(SERIES)} or newest ({DEFAULT})"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for COMMAND (600)")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", type=_size, default=MACHINE.memory, help="such as 512M (3G)")
    parser.add_argument(
        "--pmem", type=_size, action="append",
        help="persistent memory, such as 2G (1G); 0 for none; again for a second",
    )  # fmt: skip
    parser.add_argument(
        "--nvme", action="append", default=[],
        help="an NVMe namespace of 64 MiB, such as ms=8,pi=1; again for a second",
    )  # fmt: skip
    parser.add_argument(
        "--share", type=Path, help="a directory that COMMAND may write, at $SEALSVC_LAB_SHARE"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser


def _size(text: str) -> int:
    """Bytes, a multiple of MiB. A bare number counts MiB."""
    match = re.fullmatch(r"(\d+)([MG]?)", text, re.I)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 512M or 2G")
    return int(match[1]) * MiB * (1024 if match[2].upper() == "G" else 1)


if __name__ == "__main__":
    sys.exit(main())
