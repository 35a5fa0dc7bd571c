"""What the service and its keeper have of the system: more than at first is a leak."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Each thread of the gate that looks at tasks keeps two files of the last 64 open (task_look.h).
CACHED = {"/proc/N/syscall": 2 * 64, "/proc/N/stack": 2 * 64}


@dataclass(frozen=True)
class Footprint:
    """`descriptors` and `marks` by kind, `rss` in KiB."""

    descriptors: dict[str, int]
    marks: dict[str, int]
    threads: int
    children: int
    rss: int


def footprint(pid: int) -> Footprint:
    process = psutil.Process(pid)
    descriptors: Counter[str] = Counter()
    marks: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            descriptors[_kind(os.readlink(link))] += 1
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
            marks.update(re.findall(r"^fanotify (ino|sdev|mnt_id):", info, re.M))
    return Footprint(
        descriptors=dict(descriptors),
        marks=dict(marks),
        threads=process.num_threads(),
        children=len(process.children()),
        rss=process.memory_info().rss // 1024,
    )


def files(pid: int) -> list[str]:
    """Where descriptors of files lead to."""
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return [target for target in links if _kind(target) == "file"]


def locks(devices: set[int]) -> list[str]:
    """Leases, and marks of descriptions, on the file systems."""
    names = {f"{os.major(device):02x}:{os.minor(device):02x}" for device in devices}
    return [
        line
        for line in Path("/proc/locks").read_text().splitlines()
        if any(f" {name}:" in line for name in names)
    ]


def differences(before: Footprint, after: Footprint, threads: int, rss: int) -> list[str]:
    """What there is more of. There may be up to `threads` threads, and `rss` KiB more of memory."""
    found = [
        f"descriptors: {kind}: {before.descriptors.get(kind, 0)} became {count}"
        for kind, count in after.descriptors.items()
        if count > max(before.descriptors.get(kind, 0), CACHED.get(kind, 0))
    ]
    found += [
        f"marks: {kind}: {before.marks.get(kind, 0)} became {count}"
        for kind, count in after.marks.items()
        if count > before.marks.get(kind, 0)
    ]
    if after.threads > max(before.threads, threads):
        found.append(f"threads: {before.threads} became {after.threads}")
    if after.children > before.children:
        found.append(f"children: {before.children} became {after.children}")
    if after.rss > before.rss + rss:
        found.append(f"memory: {before.rss} KiB became {after.rss} KiB")
    return found


def _kind(target: str) -> str:
    if target.startswith("/") and not target.startswith(("/dev/", "/proc/", "/memfd:")):
        return "file"
    return re.sub(r"\d+", "N", target)
