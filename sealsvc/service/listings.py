"""Listings: seals by filter, by file and by holder, and the operations that wait.

Each page walks the whole table in memory. This is meant for people and dashboards, not for hot
paths."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sealsvc.core.paths import lies_below
from sealsvc.lifecycle.recall import Waiting
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.admin import (
    ConflictPage,
    Conflicts,
    FileInfo,
    FilePage,
    Files,
    HolderInfo,
    HolderPage,
    Holders,
    WaitingConflict,
)
from sealsvc.protocol.seals import List
from sealsvc.runtime import clock

T = TypeVar("T")

_PAGE = 100  # rows of a page: they fit into one message, whatever the paths are


def key_of(seal: Seal) -> str:
    """The key of the seal's file in listings."""
    return f"{seal.file.device}-{seal.file.inode}-{seal.file.generation}"


def chosen(seals: Iterable[Seal], request: List) -> list[Seal]:
    """The seals that match all filters of the request, except `path`, which the caller applies."""
    tests: list[Callable[[Seal], bool]] = []
    if request.state is not None:
        tests.append(lambda seal: seal.state is request.state)
    if request.kind is not None:
        tests.append(lambda seal: seal.request.kind is request.kind)
    if request.pid is not None:
        tests.append(lambda seal: seal.process.holder.pid == request.pid)
    if request.uid is not None:
        tests.append(lambda seal: seal.process.holder.uid == request.uid)
    if request.tag is not None:
        tests.append(lambda seal: seal.request.tag == request.tag)
    if request.owner is not None:
        tests.append(lambda seal: seal.request.principal == request.owner)
    if request.filesystem is not None:
        tests.append(lambda seal: seal.filesystem.mount == request.filesystem)
    if (below := request.below) is not None:
        tests.append(lambda seal: lies_below(seal.path, below))
    if (text := request.search) is not None:
        tests.append(lambda seal: _mentions(seal, text.lower()))
    for test in tests:
        seals = filter(test, seals)
    return list(seals)


def _mentions(seal: Seal, text: str) -> bool:
    holder = seal.process.holder
    told = (seal.id, seal.path, seal.request.tag, holder.comm, str(holder.pid))
    return any(text in part.lower() for part in told)


def _within(seals: Iterable[Seal], below: list[str] | None) -> list[Seal]:
    return [seal for seal in seals if below is None or lies_below(seal.path, below)]


def files(seals: Iterable[Seal], request: Files) -> FilePage:
    """A page of the files of these seals, in order of their keys. The caller applies the filter
    `path`."""
    by_key: dict[str, list[Seal]] = {}
    for seal in _within(seals, request.below):
        by_key.setdefault(key_of(seal), []).append(seal)
    found = sorted(
        key
        for key in by_key
        if (request.key is None or key == request.key)
        and (request.after is None or key > request.after)
    )
    page, following = _cut(found, request.limit)
    return FilePage(files=[_file(key, by_key[key]) for key in page], next=following)


def _file(key: str, seals: list[Seal]) -> FileInfo:
    newest = max(seals, key=lambda seal: seal.granted_at)
    return FileInfo(
        key=key,
        file=newest.file,
        path=newest.path,
        filesystem=newest.filesystem.type,
        mount=newest.filesystem.mount,
        **_together(seals),
    )


def holders(seals: Iterable[Seal], request: Holders) -> HolderPage:
    """A page of the holders of these seals, in order of their pids."""
    by_pid: dict[int, list[Seal]] = {}
    for seal in _within(seals, request.below):
        by_pid.setdefault(seal.process.holder.pid, []).append(seal)
    found = sorted(
        pid
        for pid in by_pid
        if (request.pid is None or pid == request.pid)
        and (request.after is None or pid > request.after)
    )
    page, following = _cut(found, request.limit)
    return HolderPage(holders=[_holder(by_pid[pid]) for pid in page], next=following)


def _holder(seals: list[Seal]) -> HolderInfo:
    # If a pid was reused, its seals are of two processes: the one with the newest seal is shown.
    newest = max(seals, key=lambda seal: seal.granted_at)
    holder = newest.process.holder
    return HolderInfo(
        pid=holder.pid,
        start_time=holder.start_time,
        uid=holder.uid,
        comm=holder.comm,
        alive=not newest.exited.is_set(),
        started_at=_since_epoch(holder.start_time),
        **_together(seals),
    )


def _since_epoch(ticks: int) -> float:
    """Seconds since the epoch, of a time in clock ticks since boot (proc_pid_stat(5), starttime;
    since Linux 5.5 that is CLOCK_BOOTTIME)."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _together(seals: list[Seal]) -> dict[str, Any]:
    """The fields that FileInfo and HolderInfo have in common (protocol Sealed)."""
    return {
        "seals": len(seals),
        "sealed_bytes": sum(seal.effective.length for seal in seals),
        "states": dict(Counter(str(seal.state) for seal in seals)),
    }


def _cut(found: list[T], limit: int) -> tuple[list[T], T | None]:
    """The first page of the list, and the cursor for the next one (None: this is the last)."""
    page = found[: min(limit, _PAGE)]
    return page, page[-1] if len(found) > len(page) else None


def conflicts(waiting: Iterable[Waiting], request: Conflicts, uid: int | None) -> ConflictPage:
    """The operations that wait, those that have waited longest first. `uid` limits them to one
    user's; None: all."""
    now, below = clock.now(), request.below
    found = [
        w
        for w in waiting
        if (below is None or lies_below(w.path, below))
        and (uid is None or w.report.operation.uid == uid)
    ]
    found.sort(key=lambda w: w.since)
    return ConflictPage(
        conflicts=[
            WaitingConflict(
                enforcer=w.enforcer,
                operation=w.report.operation,
                path=w.path,
                seals=w.seals[:100],
                waits=max(0.0, now - w.since),
            )
            for w in found[: min(request.limit, _PAGE)]
        ],
        total=len(found),
    )
