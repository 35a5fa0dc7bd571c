"""`python -m tests.bench.mounting`: how late the event loop is while mounts come and go.

100,000 changes of the mount table beside 500 overlays and 10,000 sealed files. Nearly all are bind
mounts and their ends, one in `_OVERLAY` is an overlay whose upper directory is on the file system
of the seals. The lag is sealsvc_loop_lag_seconds; it is measured in the same run without changes as
well. Everything is mounted in a mount namespace of its own, which goes with the process.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sealsvc.client import Client
from sealsvc.protocol.admin import Measures, MeasuresReport
from tests.support.scratch import mounted
from tests.support.service import RISKS, serving

GOAL = 0.05  # seconds, p99
QUIET = 20.0  # seconds of measurement before the changes
LIMITS = "max_seals = 200000\n"
_OVERLAY = 2000  # changes, of which the first is an overlay
_BLOCK = 4096
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 4096, 16384, 1 << 18, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    strings = (os.fsencode(text) for text in (source, target, kind))
    _call(_libc.mount(*strings, flags, os.fsencode(options)), f"mount on {target}")


def _unmount(target: Path) -> None:
    _call(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount of {target}")


def _overlay(top: Path, upper: Path) -> Path:
    """Mount an overlay below `top`; its upper layer is below `upper`."""
    names = [upper / "up", upper / "work", top / "low", top / "merged"]
    for name in names:
        name.mkdir(parents=True, exist_ok=True)
    up, work, low, merged = names
    _mount("overlay", merged, "overlay", 0, f"lowerdir={low},upperdir={up},workdir={work}")
    return merged


@contextmanager
def _sealed(client: Client, root: Path, count: int) -> Iterator[None]:
    for number in range(count):
        path = root / f"sealed-{number}"
        path.write_bytes(bytes(_BLOCK))
    os.sync()
    for number in range(count):
        reply = client.grant(path=str(root / f"sealed-{number}"), kind="shared")
        os.close(reply.fds[0])
    yield


def lag_counts(client: Client) -> tuple[list[float], list[int]]:
    measured = client.call(Measures).result
    assert isinstance(measured, MeasuresReport)
    found = measured.latencies["loop_lag"]
    return found.bounds, found.counts


def percentile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float:
    """The upper bound of the bucket that has the value; infinite above all bounds."""
    left = sum(counts) * part
    for bound, count in zip([*bounds, float("inf")], counts, strict=True):
        left -= count
        if left <= 0:
            return bound
    return 0.0


def _lag_of(client: Client, before: list[int]) -> tuple[str, float]:
    bounds, now = lag_counts(client)
    counts = [after - was for after, was in zip(now, before, strict=True)]
    p50, p99, most = (percentile(bounds, counts, part) for part in (0.5, 0.99, 1.0))
    told = f"p50 <= {p50 * 1e3:g} ms, p99 <= {p99 * 1e3:g} ms, most <= {most * 1e3:g} ms"
    return f"{told} ({sum(counts)} samples)", p99


def _change(place: Path, upper: Path, changes: int) -> float:
    """Mount and unmount; returns seconds."""
    spots = [place / f"spot-{n}" for n in range(16)]
    for spot in spots:
        spot.mkdir()
    began = time.monotonic()
    for number in range(changes // 2):
        if number % (_OVERLAY // 2) == 0:
            merged = _overlay(place / f"late-{number}", upper / f"late-{number}")
            _unmount(merged)
        else:
            spot = spots[number % len(spots)]
            _mount(str(place), spot, "", _MS_BIND)
            _unmount(spot)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=100_000)
    parser.add_argument("--overlays", type=int, default=500)
    parser.add_argument("--seals", type=int, default=10_000)
    chosen = parser.parse_args()
    _call(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)
    with (
        tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made,
        mounted("xfs", 4 << 30) as root,
        serving(Path(made), [root], RISKS + LIMITS) as socket,
        Client(socket, timeout=120) as client,
        _sealed(client, root, chosen.seals),
    ):
        place = Path(made, "mounts")
        place.mkdir()
        _mount("tmpfs", place, "tmpfs")
        for number in range(chosen.overlays):
            _overlay(place / f"overlay-{number}", root / f"upper-{number}")
        time.sleep(5)
        before = lag_counts(client)[1]
        time.sleep(QUIET)
        print(f"without changes: {_lag_of(client, before)[0]}", flush=True)
        before = lag_counts(client)[1]
        took = _change(place, root / "uppers", chosen.changes)
        told, p99 = _lag_of(client, before)
        print(
            f"{chosen.changes} changes in {took:.0f} s, {chosen.overlays} overlays,"
            f" {client.status().seals} seals: {told}"
        )
        _unmount(place)
    print("held" if p99 <= GOAL else f"MISSED: p99 {p99 * 1e3:g} ms, goal {GOAL * 1e3:g} ms")
    return p99 > GOAL


if __name__ == "__main__":
    sys.exit(main())
