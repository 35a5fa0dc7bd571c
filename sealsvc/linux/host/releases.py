"""Is anything left of a holder's hold on a range? Its mappings, and references to its pages.

Each proof is tried from the cheapest to the dearest: that nobody maps the file at all; that the
holder's description is gone everywhere, and with it all that was mapped by it; that no process maps
the range but where it has sealed it itself. What cannot be known counts as left.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Gap, Kind, Mark
from sealsvc.linux import native
from sealsvc.linux.host import UNSEEN_REFERENCES, ReleaseQuestion, RemainingMapping, Target, mapped
from sealsvc.linux.host.proofs import Held, Prover
from sealsvc.linux.native import lib

_PAGE = mapped.PAGE
_ATTEMPTS = 5


class Releases:
    def __init__(self, prover: Prover) -> None:
        self.prover = prover

    # Knowing a description again

    def mark(self, fd: int, token: int, *, sole: bool) -> Mark:
        if mark := self.prover.describe(fd):
            return mark
        if sole:
            return Mark()
        try:
            return Mark(byte=native.token_set(fd, native.TOKEN_BASE + 2 * token))
        except BlockingIOError:
            raise Refusal(
                "file-in-use",
                "another process has locked the whole file for writing (fcntl(F_SETLK), lockf),"
                " and without BPF the service locks a byte behind its end: ask for an exclusive"
                " seal, or again when that lock is gone",
                retry_after=1.0,
            ) from None

    def is_left(self, anchor: int, mark: Mark) -> bool:
        if anchor < 0:
            return True
        if mark.byte:
            return native.token_held(anchor, mark.byte)
        if mark.file:
            return self.prover.is_alive(anchor, mark) is not False
        return not native.lease_probe(anchor, fcntl.F_WRLCK)

    # Proofs

    def is_free(self, q: ReleaseQuestion) -> bool:
        if q.anchor < 0:
            return False
        told = self.prover.is_mapped(q.anchor)
        if told is not None:
            return not told
        # A lease says more than that nobody maps the file: that nobody has it open.
        return q.apart and not self._must_look_at_pages(q) and _is_sole(q.anchor)

    def remaining_mappings(self, q: ReleaseQuestion) -> list[RemainingMapping]:
        if self._is_gone(q):
            # The holder may map the file by another description, and so may its children.
            everybody = 0
            if q.exclusive:
                found = list(self._mapped(q, everybody))
            else:
                found = list(self._mapped(q, q.holder)) if q.holder else []
        elif (held := self._held(q)) is not None:
            found = held
        else:
            # /proc does not tell which description a mapping came from: all count.
            found = list(self._mapped(q, 0))
        return found or self._referenced(q)

    def _held(self, q: ReleaseQuestion) -> list[RemainingMapping] | None:
        """What is mapped by the holder's description, or in the holder; None: it cannot be told."""
        if q.anchor < 0 or not q.mark.file:
            return None
        held = self._held_by_all(q)
        if held is None:
            return None
        found = list[RemainingMapping]()
        for pid, maps in held.rows:
            if maps < 0 and (held.unseen or pid == q.holder):
                found.append(RemainingMapping(q.range, pid, os.strerror(-maps)))
            elif maps > 0 and (maps & lib.SEAL_MAPS_BY_DESCRIPTION or _may_be_of_holder(q, pid)):
                found += [RemainingMapping(part, pid) for part in self._parts(q, pid)]
        return found

    def _held_by_all(self, q: ReleaseQuestion) -> Held | None:
        """System calls under way refer to the description for a moment, too, and belong to nobody
        that can be seen."""
        held = self.prover.held(q.anchor, q.mark, q.range)
        for _ in range(_ATTEMPTS):
            if held is None or not held.unseen:
                break
            held = self.prover.held(q.anchor, q.mark, q.range)
        return held

    def _parts(self, q: ReleaseQuestion, pid: int) -> list[ByteRange]:
        """Where the process may map the range by what it has not sealed itself."""
        own = q.sealed.get(pid, [])
        mapped = list(_mappings(q, pid))
        if any(m.error for m in mapped):
            return q.range.without_all(own)
        parts = [ByteRange(m.offset, m.length) for m in mapped]
        return [left for part in parts for left in part.without_all(own)]

    def writable_mappings(self, q: ReleaseQuestion) -> list[RemainingMapping]:
        return [
            _remaining_mapping(m, q)
            for m in _mappings(q, q.holder)
            if m.error or (m.shared and m.writable)
        ]

    def _is_gone(self, q: ReleaseQuestion) -> bool:
        """Is the holder's description known to be gone everywhere?"""
        if q.anchor < 0 or not q.apart or not (q.mark.file or q.mark.byte):
            return False
        return not self.is_left(q.anchor, q.mark)

    def _mapped(self, q: ReleaseQuestion, pid: int) -> Iterator[RemainingMapping]:
        """What a process, or all (0), map of the range and have not sealed themselves."""
        for mapping in _mappings(q, pid):
            left = _remaining_mapping(mapping, q)
            own = q.sealed.get(mapping.pid, [])
            for part in [left.range] if left.why else left.range.without_all(own):
                yield RemainingMapping(part, left.pid, left.why)

    # References to pages of persistent memory

    def gaps(self, target: Target) -> tuple[Gap, ...]:
        if not mapped.has_dax(target.fd) or self.prover.waits:
            return ()
        if self.prover.can_see_references():
            base = mapped.base_of(target.fd, target.file)
            if not isinstance(base, str):
                return ()
        why = (
            "before Linux 6.15 blocks of a DAX file are freed while I/O or a pipe refers to their"
            " pages, and here that cannot be seen"
        )
        return (Gap(risk=UNSEEN_REFERENCES, kinds=[Kind.EXCLUSIVE, Kind.SHARED], why=why),)

    def _must_look_at_pages(self, q: ReleaseQuestion) -> bool:
        return not self.prover.waits and (q.anchor < 0 or mapped.has_dax(q.anchor))

    def _referenced(self, q: ReleaseQuestion) -> list[RemainingMapping]:
        """Before v6.15 the kernel frees the blocks of a DAX file while pages of them are referenced
        (get_user_pages: direct I/O under way, pages in a pipe) once nobody maps it, and what those
        read or write then is the next file's."""
        if not self._must_look_at_pages(q):
            return []
        base = mapped.base_of(q.anchor, q.file)
        if isinstance(base, str):
            return [] if q.unseen or q.anchor < 0 else [RemainingMapping(q.range)]
        for frame, count, offset in _frames(q, base):
            found = self.prover.first_referenced(frame, count)
            if found is None:
                return [] if q.unseen else [RemainingMapping(q.range)]
            if found >= 0:
                return [RemainingMapping(ByteRange(offset + (found - frame) * _PAGE, _PAGE))]
        return []


def _may_be_of_holder(q: ReleaseQuestion, pid: int) -> bool:
    """May a process that maps the file by another description have that from the holder? Whoever
    has the holder's descriptor, too, is no bystander: most likely a child of it."""
    return q.exclusive or pid == q.holder or _has_open(pid, q.file.inode)


def _has_open(pid: int, inode: int) -> bool:
    """Has the process a descriptor of a file with this inode number? What cannot be read counts.
    fdinfo tells the number without asking the file system (fs/proc/fd.c, seq_show)."""
    wanted = b"ino:\t%d\n" % inode
    try:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return any(wanted in _fdinfo(pid, number) for number in numbers)


def _fdinfo(pid: int, number: str) -> bytes:
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
            return file.read()
    except OSError:
        return b""  # closed meanwhile, or the process has ended


def _is_sole(anchor: int) -> bool:
    return native.lease_probe(anchor, fcntl.F_WRLCK)


def _mappings(q: ReleaseQuestion, pid: int) -> list[native.Mapping]:
    file = q.file
    try:
        return native.mappings(pid, file.device, file.inode, q.range)
    except ProcessLookupError:
        return []
    except BlockingIOError:
        raise Refusal(
            "try-later",
            "too many processes keep their memory maps from being read (/proc/PID/maps): it cannot"
            " be proven that nobody maps the file",
            retry_after=1.0,
        ) from None


def _remaining_mapping(mapping: native.Mapping, q: ReleaseQuestion) -> RemainingMapping:
    if mapping.error == errno.ETIMEDOUT:
        return RemainingMapping(
            q.range, mapping.pid, "it holds its mmap_lock, or is stopped in execve"
        )
    if mapping.error:
        return RemainingMapping(q.range, mapping.pid, os.strerror(mapping.error))
    return RemainingMapping(ByteRange(mapping.offset, mapping.length), mapping.pid)


def _frames(q: ReleaseQuestion, base: int) -> Iterator[tuple[int, int, int]]:
    """(first page frame, how many, offset in the file) of the range's pieces on the device."""
    pages = q.range.rounded(_PAGE)
    for logical, physical, length, _ in q.map.astype(np.int64).tolist():
        start, end = max(logical, pages.offset), min(logical + length, pages.end)
        if start < end:
            at = (base + physical + start - logical) // _PAGE
            yield at, -(-(end - start) // _PAGE), start
