"""Copies: each strategy beside cp(1) and a bare copy_file_range(2) loop, and the lower clone beside
reading and writing: `python -m tests.bench.copying [--size MiB] [--rounds N]`.

Alternating rounds, medians. Caches are dropped before each; each ends with the data on the device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from sealsvc.copies import Measured, Options, Result, make_plan, run  # noqa: E402
from tests.copies.conftest import opened, pattern  # noqa: E402
from tests.copies.stacks import filled, lower_filesystem, upper  # noqa: E402
from tests.copies.test_lower import as_if_sealed  # noqa: E402
from tests.support.scratch import mounted  # noqa: E402 (after the path)

MiB = 1 << 20
LEARNING = 3  # copies that the choice may learn from before it counts
CHOSEN_GOAL = 1.05  # of the fastest there is
LOWER_GOAL = 50.0  # times as fast as reading and writing

Way = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Figure:
    """Medians in seconds of every way; `ratio` is what the goal is about."""

    name: str
    size: int
    seconds: dict[str, float]
    ratio: float
    goal: str
    missed: bool
    used: dict[str, int] = field(default_factory=dict)


def by(*only: str, sealed: bool = False, measured: Measured | None = None) -> Way:
    """By our own strategies; `only` empty: the one that is chosen."""

    def way(a: Path, b: Path) -> None:
        copied(a, b, Options(only=only), measured, sealed=sealed)

    return way


def copied(
    a: Path, b: Path, options: Options, measured: Measured | None = None, *, sealed: bool = False
) -> Result:
    with opened(a, b) as ends:
        held = as_if_sealed(ends) if sealed else ends
        result = run(make_plan(held, options, measured), measured)
    assert result.whole, result.error
    return result


def cp(a: Path, b: Path) -> None:
    subprocess.run(["cp", "--reflink=auto", a, b], check=True)
    _flushed(b)


def bare_loop(a: Path, b: Path) -> None:
    source, there = os.open(a, os.O_RDONLY), os.open(b, os.O_WRONLY | os.O_CREAT)
    left = os.fstat(source).st_size
    while left:
        done = os.copy_file_range(source, there, left)
        assert done
        left -= done
    os.close(source)
    os.fsync(there)
    os.close(there)


def _flushed(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _cold() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def _timed(way: Way, a: Path, b: Path) -> float:
    _cold()
    began = time.perf_counter()
    way(a, b)
    return time.perf_counter() - began


def chosen(place: Path, name: str, size: int, rounds: int) -> Figure:
    """Into new files: is what is chosen the fastest?"""
    a, measured = filled(place / "a", pattern(size)), Measured()
    with opened(a, place / "warm") as ends:
        plan = make_plan(ends, Options(), measured)
        able = [n for n in plan.strategies if n not in ("zero", "lower", "nvme", "xcopy", "dax")]
        plan.close()
    for _ in range(LEARNING):
        by(measured=measured)(a, place / "warm")
        (place / "warm").unlink()
    ways: dict[str, Way] = {n: by(n) for n in able}
    ways |= {"cp --reflink=auto": cp, "copy_file_range loop": bare_loop}
    ways["chosen"] = by(measured=measured)
    samples: dict[str, list[float]] = {n: [] for n in ways}
    for number in range(rounds):
        for n, way in ways.items():
            b = place / f"b{number}"
            samples[n].append(_timed(way, a, b))
            b.unlink()
    seconds = {n: statistics.median(found) for n, found in samples.items()}
    ratio = seconds["chosen"] / min(s for n, s in seconds.items() if n != "chosen")
    used = copied(a, place / "last", Options(), measured).bytes_by_strategy
    goal = f"<= {CHOSEN_GOAL} of the fastest"
    return Figure(name, size, seconds, ratio, goal, ratio > CHOSEN_GOAL, used)


def lower_clone(place: Path, name: str, size: int, rounds: int) -> Figure:
    """Over a file that is there: a clone below, or reading and writing above."""
    a, b = filled(place / "a", pattern(size)), place / "b"
    measured = Measured()
    ways = {
        "lower": by("lower", sealed=True, measured=measured),
        "plain": by("plain"),
        "range": by("range"),
    }
    samples: dict[str, list[float]] = {n: [] for n in ways}
    for _ in range(rounds):
        for n, way in ways.items():
            filled(b, pattern(size, seed=9))  # never what it already shares
            samples[n].append(_timed(way, a, b))
    seconds = {n: statistics.median(found) for n, found in samples.items()}
    ratio = seconds["plain"] / seconds["lower"]
    goal = f">= {LOWER_GOAL:g} times as fast as reading and writing; `range` is the kernel's splice"
    return Figure(name, size, seconds, ratio, goal, ratio < LOWER_GOAL)


@contextmanager
def _room(kind: str, size: int) -> Iterator[Path]:
    arguments = ["-m", "reflink=1"] if kind == "xfs" else []
    with mounted(kind, size=8 * size + 512 * MiB, mkfs_args=arguments) as place:
        yield place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the lower clone (1024)")
    parser.add_argument("--small", type=int, default=256, help="MiB of the others (256)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    figures = []
    for kind in ("xfs", "ext4"):
        with _room(kind, options.small * MiB) as place:
            figures.append(chosen(place, f"chosen on {kind}", options.small * MiB, options.rounds))
            _show(figures[-1])
    for below in ("xfs", "btrfs"):
        size = options.size * MiB
        with (
            lower_filesystem(below, 4 * size + 1024 * MiB) as lower,
            upper(lower, "ext4", 2 * size + 512 * MiB) as place,
        ):
            name = f"lower clone, ext4 over {below}"
            figures.append(lower_clone(place, name, size, options.rounds))
            _show(figures[-1])
    return int(any(figure.missed for figure in figures))


def _show(figure: Figure) -> None:
    print(json.dumps(asdict(figure)), flush=True)
    said = "MISSED" if figure.missed else "met"
    print(f"{figure.name}: {figure.ratio:.2f} (goal {figure.goal}): {said}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
