"""The audit (drift check): compares the extent maps of sealed files with the recorded ones."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterable
from typing import NamedTuple

from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange, Drift, Operation
from sealsvc.enforce.pin import is_contended
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.system import AuditReport

# Seconds in which a batch must be read; the second if the file system did not answer last time.
_PATIENCE, _SHORT_PATIENCE = 10.0, 1.0

# Errors of a file system that was shut down, or whose device is gone.
_DEAD = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN})


# Seals, and extents of them, that a worker thread compares in one batch.
_BATCH, _BATCH_EXTENTS = 2048, 1 << 16


class _Found(NamedTuple):
    """A difference between the recorded map and the present one; both are (n, 4) arrays."""

    difference: extents.Difference
    recorded: ExtentMap
    present: ExtentMap


# The result for one seal: a difference, the reason why it cannot be read, or None (equal).
_Look = _Found | Exception | None


async def audit(
    grants: Grants,
    recaller: Recaller,
    chosen: Iterable[Seal],
    passed: str = "",
) -> AuditReport:
    """Compare the maps of the chosen seals. Those that have drifted, or whose file system is dead,
    become lost. File systems are audited independently: one that does not answer delays no other.
    `passed` describes the event that caused the audit, for the reason of the loss."""
    by_device: dict[int, list[Seal]] = {}
    for seal in chosen:
        by_device.setdefault(seal.file.device, []).append(seal)
    parts = await asyncio.gather(
        *(
            _audit_filesystem(grants, recaller, device, found, passed)
            for device, found in by_device.items()
        )
    )
    return AuditReport(
        checked=sum(part.checked for part in parts),
        drifted=[drift for part in parts for drift in part.drifted],
        unreadable=[text for part in parts for text in part.unreadable],
    )


async def _audit_filesystem(
    grants: Grants,
    recaller: Recaller,
    device: int,
    chosen: list[Seal],
    passed: str,
) -> AuditReport:
    checked, drifted, unreadable, lost = 0, list[Drift](), list[str](), list[Seal]()
    looked = 0
    while looked < len(chosen):
        batch = _batch(chosen, looked)
        looks = await _look(grants, device, batch)
        checked += looks.same
        for seal, found in looks.other:
            if not seal.live:
                continue
            if isinstance(found, Exception):
                unreadable.append(f"{seal.id}: {found}")
                if _errno(found) in _DEAD and not seal.drifted:
                    recaller.lose(seal, f"its map cannot be read any more: {found}")
                    lost.append(seal)
            else:
                checked += 1
                if found is not None and _promised(seal, found):
                    drifted.append(_drift(grants, recaller, seal, found, passed))
        looked += len(batch)
        if looks.left:
            left = [seal for seal in (*looks.left, *chosen[looked:]) if seal.live]
            unreadable += [f"{seal.id}: its file system does not answer" for seal in left]
            _tell_silence(grants, device, left)
            break
    else:
        grants.silent.discard(device)
    _tell_death(grants, lost)
    return AuditReport(checked=checked, drifted=drifted, unreadable=unreadable)


async def present_map(grants: Grants, seal: Seal) -> ExtentMap:
    """The present map of the sealed range, an (n, 4) array. Raises Refusal `io-error` when the file
    system does not answer within _PATIENCE seconds, and OSError."""
    looking = grants.workers.of(("audit", seal.file.device), 1).run(_present, grants, seal)
    try:
        found = await asyncio.wait_for(looking, _PATIENCE)
    except TimeoutError:
        raise Refusal("io-error", "the file system does not answer") from None
    return extents.clip(found, seal.effective)


def _batch(chosen: list[Seal], start: int) -> list[Seal]:
    """The next seals to compare in one call to a worker: such a call takes longer than comparing
    one map."""
    end, extents_left = start, _BATCH_EXTENTS
    while end < min(len(chosen), start + _BATCH) and (end == start or extents_left > 0):
        extents_left -= len(chosen[end].map)
        end += 1
    return chosen[start:end]


def _promised(seal: Seal, found: _Found) -> bool:
    """Whether the seal still promises the map that was compared. It does not when the map was
    replaced meanwhile, or may change now (a registration in which nothing is sealed)."""
    return seal.map is found.recorded and not seal.may_change


def _drift(grants: Grants, recaller: Recaller, seal: Seal, found: _Found, passed: str) -> Drift:
    difference = found.difference
    drift = Drift(
        seal=seal.id,
        path=seal.path,
        logical=difference.offset,
        expected=difference.expected,
        found=difference.found,
    )
    if not seal.drifted:
        recaller.machine.events.publish("drift", seal.id, drift=drift)
        grants.registry.drifted(drift, found.recorded, found.present)
        after = f" after {passed}" if passed else ""
        recaller.lose(seal, f"the map differs at {difference.offset}{after}")
    return drift


def evidence(passed: Operation) -> str:
    """The operation and its caller as text; the caller may have ended."""
    who = f"process {passed.pid} ({passed.comm})" if passed.pid else "a process that is gone"
    return (
        f"{passed.name} of {passed.length} bytes at {passed.offset} by thread {passed.tid}, {who}"
    )


# Alarms: one when a file system stops answering, not one for each audit. Each seal that is lost has
# its own in addition.


def _tell_silence(grants: Grants, device: int, left: list[Seal]) -> None:
    if left and device not in grants.silent:
        reason = f"{_named(left[0])} does not answer: {len(left)} seals cannot be audited"
        grants.machine.events.publish("alarm", reason=reason)
    grants.silent.add(device)


def _tell_death(grants: Grants, lost: list[Seal]) -> None:
    if lost:
        reason = f"{_named(lost[0])} is shut down or its device is gone: {len(lost)} seals are lost"
        grants.machine.events.publish(
            "alarm", reason=reason, seals=[seal.id for seal in lost[:100]]
        )


def _named(seal: Seal) -> str:
    return f"the {seal.filesystem.type} of {seal.filesystem.mount} ({seal.filesystem.source})"


def _errno(error: Exception) -> int | None:
    if isinstance(error, Refusal):
        found = error.details.get("errno")
        return found if isinstance(found, int) else None
    return error.errno if isinstance(error, OSError) else None


# Reading maps: by one thread for each file system, so that one which hangs blocks one thread only.


class _Looks:
    """A batch of seals, and what a worker thread has found of the first `done` of `seals`: that
    many maps are the `same` as recorded, and what there is of each of the `other`."""

    def __init__(self, batch: list[Seal]) -> None:
        # A pinned map must be looked at with care, and a registration promises parts of its range.
        apart = [s for s in batch if s.place is not None or "pin" in s.enforcers]
        alone = set(apart)
        self.plain = [s for s in batch if s not in alone] if apart else batch
        self.seals = self.plain + apart
        self.done = self.same = 0
        self.other: list[tuple[Seal, _Look]] = []
        self._lock, self._closed = threading.Lock(), False

    def add(self, seal: Seal, look: _Look) -> None:
        with self._lock:
            if not self._closed:
                self.other.append((seal, look))
                self.done += 1

    def add_same(self, count: int) -> None:
        with self._lock:
            if not self._closed:
                self.same += count
                self.done += count

    def close(self) -> None:
        """Nothing is added any more: what comes too late was not found."""
        with self._lock:
            self._closed = True

    @property
    def left(self) -> list[Seal]:
        """Those that were not looked at."""
        return self.seals[self.done :]


async def _look(grants: Grants, device: int, batch: list[Seal]) -> _Looks:
    """What is found of the seals of a batch; something is `left` when the file system does not
    answer in time."""
    pool = grants.workers.of(("audit", device), 1)
    patience = _SHORT_PATIENCE if device in grants.silent else _PATIENCE
    looks = _Looks(batch)
    looking = asyncio.ensure_future(pool.run(_look_at, grants, device, looks))
    try:
        done, _ = await asyncio.wait([looking], timeout=patience)
    finally:
        looking.cancel()
    looks.close()
    if done:
        looking.result()  # raises unexpected exceptions: I/O errors are among the results
    return looks


def _present(grants: Grants, seal: Seal) -> ExtentMap:
    if "pin" in seal.enforcers and is_contended(seal.hold.anchor, seal.effective.offset):
        # FIEMAP would wait for the inode's lock, without being killable, until the pin is released.
        raise Refusal("io-error", "its map is pinned, and its lock is held (docs/pin.md)")
    return grants.host.look(seal.hold.anchor, seal.file, seal.effective)


def _look_at(grants: Grants, device: int, looks: _Looks) -> None:
    """Compare the maps natively; only those that are not row by row as recorded are looked at
    here."""
    plain = looks.plain
    maps = [seal.map for seal in plain]
    if plain:
        inodes = [seal.file.inode for seal in plain]
        anchors: dict[int, int] = {}
        for seal, inode in zip(plain, inodes, strict=True):
            if inode not in anchors:
                anchors[inode] = seal.hold.anchor
        comparison = grants.host.comparison(
            device,
            [anchors[inode] for inode in inodes],
            inodes,
            [seal.effective for seal in plain],
            maps,
        )
        at = 0
        while True:
            changed, present = comparison.next_changed(at)
            looks.add_same(changed - at)
            if changed == len(plain):
                break
            looks.add(plain[changed], _closer(grants, plain[changed], maps[changed], present))
            at = changed + 1
    for seal in looks.left:
        looks.add(seal, _closer(grants, seal, seal.map, None))


def _closer(grants: Grants, seal: Seal, recorded: ExtentMap, present: ExtentMap | None) -> _Look:
    """What is found of one seal, whose `present` map may have been read already."""
    try:
        now = _present(grants, seal) if present is None else present
    except (Refusal, OSError) as error:
        return error
    for span in _promised_spans(seal, recorded):
        if found := extents.first_difference(recorded, now, span):
            return _Found(found, recorded, now)
    return None


def _promised_spans(seal: Seal, recorded: ExtentMap) -> list[ByteRange]:
    """The ranges in which the map is promised. For a registration these are the extents that can be
    sealed: any write may fill a hole in it, and no seal is granted there before the map is read
    again."""
    if seal.place is None or seal.place.slot >= 0:
        return [seal.effective]
    return extents.spans(extents.suitable(recorded, seal.effective))
