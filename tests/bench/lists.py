"""sealctl's lists of 10,000 seals, beside a Python program that does no more than decode the same
answers and print a line for each. The ratio is what the service, the socket, the search for widths
and the drawing cost."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import msgspec

from sealsvc.client import Client
from tests.bench.figures import Bench, Figure, alternate
from tests.bench.many_seals import BLOCK, many_seals

COUNT, A_FILE = 10_000, 2000

FLOOR = """
import json, sys
for line in open(sys.argv[1]):
    for seal in json.loads(line)["seals"]:
        print(seal["id"], seal["state"], seal["range"], seal["path"])
"""


def _drawn(command: list[str], socket: str) -> list[float]:
    """Milliseconds until the command has ended, on a terminal of 80 columns that is read."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))

    def read() -> None:
        try:
            while os.read(main, 1 << 16):
                pass
        except OSError:  # EIO: the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    begun = time.perf_counter()
    environment = {**os.environ, "SEALSVC_SOCKET": socket, "TERM": "xterm"}
    subprocess.run(command, stdout=side, env=environment, check=True, timeout=120)
    taken = (time.perf_counter() - begun) * 1e3
    os.close(side)
    reader.join()
    os.close(main)
    return [taken]


def _answers(bench: Bench, command: list[str], name: str) -> Path:
    """What the command is told, in lines as long as a message."""
    told = subprocess.run(
        [*command, "-o", "json"], capture_output=True, check=True, timeout=120,
        env={**os.environ, "SEALSVC_SOCKET": bench.socket},
    ).stdout  # fmt: skip
    seals = msgspec.json.decode(told)["seals"]
    assert len(seals) >= COUNT
    path = bench.root / f"{name}.json"
    with path.open("wb") as out:
        for start in range(0, len(seals), 80):
            out.write(msgspec.json.encode({"seals": seals[start : start + 80]}) + b"\n")
    return path


def _compared(bench: Bench, name: str, command: list[str], rounds: int) -> Figure:
    shown = [sys.executable, "-m", "sealsvc.cli.sealctl", *command]
    floor = [sys.executable, "-c", FLOOR, str(_answers(bench, shown, name))]
    return alternate(
        f"{name}-{COUNT}", "a bare Python program that prints the same", 10.0,
        lambda: _drawn(shown, bench.socket), lambda: _drawn(floor, bench.socket), rounds, "ms",
    )  # fmt: skip


def lists(bench: Bench, rounds: int) -> list[Figure]:
    """The goal of a second for 10,000 rows is one of 10 times the floor, which takes a tenth."""
    paths = [bench.file(f"lists-{n}", A_FILE * BLOCK) for n in range(COUNT // A_FILE)]
    with Client(bench.socket) as client, many_seals(client, paths, COUNT, A_FILE):
        return [
            _compared(bench, "ls", ["ls"], rounds),
            _compared(bench, "history", ["history", "--limit", str(COUNT)], rounds),
        ]
