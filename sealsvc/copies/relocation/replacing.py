"""A new inode that takes a file's name: for files whose extents nothing exchanges (DAX).

Nobody may use the file meanwhile: its seals are recalled and end, and who opens it is refused
(ETXTBSY) until the name is the new inode's. Holders grant anew, and get another descriptor.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from sealsvc.copies.relocation.donor import improves, make_donor, runs
from sealsvc.copies.relocation.holders import guarded, until_done
from sealsvc.copies.relocation.moving import Progress, write_all
from sealsvc.copies.relocation.record import Phase, Record, Records
from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Kind, State
from sealsvc.enforce.base import Hold, Verdict
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import libc, native
from sealsvc.linux.host import ExtentMap, Target
from sealsvc.runtime import clock, faults

REASON = "the file is being replaced by a copy of itself: grant it anew"
_CHUNK = 1 << 20  # bytes
_EXCHANGE = 2  # RENAME_EXCHANGE (include/uapi/linux/fs.h)
_MARGIN = 30.0  # seconds from the end of a holder's grace to the deadline of its recall

CallOff = Callable[[Record, list[Seal], set[str]], None]
Run = Callable[..., Awaitable[Any]]


async def replaced(
    record: Record,
    grants: Grants,
    recaller: Recaller,
    records: Records,
    run: Run,
    progress: Progress,
    call_off: CallOff,
) -> dict[str, Any]:
    """What the job tells. Raises Refusal, OSError; then the file is what it was."""
    new: Replacement = await run(Replacement, grants, record)
    try:
        if new.reason:
            return {"moved": False, "reason": new.reason, **new.told()}
        async with grants.lock(new.target.file):
            seals = [seal for seal in grants.machine.table.of_file(new.target.file) if seal.live]
            record.phase, record.seals = Phase.RECALL, [seal.id for seal in seals]
            record.temporary, record.donor = new.temporary, os.fstat(new.donor).st_ino
            await run(records.write, record)
            began = clock.now()
            await _until_over(record, recaller, seals, call_off)
            hold: Hold = await run(_alone, grants.enforcers, new.target)
            try:
                await run(new.copy, progress)
                record.phase = Phase.SWAP
                await run(records.write, record)
                await run(new.take_name)
            finally:
                await grants.workers.of(record.device).run(hold.release)
            pause = round(clock.now() - began, 4)
        after = await run(native.read_extents, new.donor, None)
        return {"moved": True, "replaced": True, **new.told(after), "pauses": [pause]}
    finally:
        new.close()


async def _until_over(
    record: Record, recaller: Recaller, seals: list[Seal], call_off: CallOff
) -> None:
    """Every seal has ended. Whoever does not return it in time is not fenced: it goes on."""
    try:
        for seal in seals:
            recaller.recall(seal, REASON, grace=record.grace + _MARGIN)
        await until_done(record, seals, lambda seal: [seal.released], "did not return seal")
    except BaseException:
        call_off(record, [seal for seal in seals if seal.state is State.RECALLED], set())
        raise


def _alone(enforcers: EnforcerSet, target: Target) -> Hold:
    """Nobody else has the file open, and who opens or truncates it is refused. Raises Refusal
    `file-in-use` where somebody has."""
    hold = guarded(enforcers, target, Kind.EXCLUSIVE)
    try:
        hold.change(Verdict.REFUSE)
    except BaseException:
        hold.release()
        raise
    return hold


class Replacement:
    """The file, and the one that is to take its name; in a worker. `reason`: why it is not
    better."""

    def __init__(self, grants: Grants, record: Record) -> None:
        with ExitStack() as undo:
            self.target = grants.host.open_path(record.path, grants.policy.roots, writable=True)
            undo.callback(os.close, self.target.fd)
            _refuse(grants, self.target, record)
            os.fsync(self.target.fd)
            self.before = native.read_extents(self.target.fd, None)
            if not len(self.before):
                raise Refusal("bad-request", f"{record.path} has no blocks", {"path": record.path})
            directory, self.name = os.path.split(self.target.path)
            self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, self.directory)
            self.donor = make_donor(self.target, record.goal, self.before)
            undo.callback(os.close, self.donor)
            if grants.host.has_dax(self.target.fd) != grants.host.has_dax(self.donor):
                raise Refusal(
                    "filesystem-unsupported",
                    f"a new file beside {self.target.path} would not be DAX as it is: set the"
                    " directory's attribute (xfs_io -c 'chattr +x')",
                    {"path": self.target.path},
                )
            self.temporary = f".sealsvc-{record.id}"
            self.reason = improves(record.goal, self.before, native.read_extents(self.donor, None))
            undo.pop_all()

    def told(self, after: ExtentMap | None = None) -> dict[str, Any]:
        rows = {"before": self.before} | ({} if after is None else {"after": after})
        told: dict[str, Any] = {
            name: {"extents": len(runs(map)), "first": int(map[0, 1]) if len(map) else None}
            for name, map in rows.items()
        }
        return told if after is None else told | {"tracking": "none is needed"}

    def copy(self, progress: Progress) -> None:
        """Contents, and what else an inode has; on the device when it returns."""
        fd, size, buffer = self.target.fd, os.fstat(self.target.fd).st_size, bytearray(_CHUNK)
        os.ftruncate(self.donor, size)
        for logical, _, length, flags in native.read_extents(fd, None).tolist():
            if flags & extents.EXTENT_UNWRITTEN:
                continue
            for offset in range(logical, min(logical + length, size), _CHUNK):
                end = min(offset + _CHUNK, logical + length, size)
                part = memoryview(buffer)[: end - offset]
                if os.preadv(fd, [part], offset) != len(part):
                    raise Refusal("io-error", f"{self.target.path} ends before its size")
                write_all(self.donor, part, offset)
                progress(end, size)
        carry_attributes(fd, self.donor)
        os.fsync(self.donor)

    def take_name(self) -> None:
        """Both names change places in one step: if the file's name was another's by then, it is
        given back."""
        directory = self.directory
        made = f"/proc/self/fd/{self.donor}"
        os.link(made, self.temporary, dst_dir_fd=directory, follow_symlinks=True)
        try:
            faults.point("relocate:swapping")
            exchange_names(directory, self.temporary, self.name)
            faults.point("relocate:swapped")
            found = os.stat(self.temporary, dir_fd=directory, follow_symlinks=False)
            if found.st_ino != self.target.file.inode:
                exchange_names(directory, self.temporary, self.name)
                raise Refusal("no-such-file", f"{self.target.path} is another file by now")
        finally:
            os.unlink(self.temporary, dir_fd=directory)
            os.fsync(directory)

    def close(self) -> None:
        for fd in (self.donor, self.directory, self.target.fd):
            os.close(fd)


def _refuse(grants: Grants, target: Target, record: Record) -> None:
    if (target.file.device, target.file.inode) != (record.device, record.inode):
        raise Refusal("no-such-file", f"{target.path} is another file by now")
    if reason := target.filesystem.unsupported:
        raise Refusal("filesystem-unsupported", f"{target.path}: {reason}")
    if (links := os.fstat(target.fd).st_nlink) != 1:
        raise Refusal(
            "bad-request",
            f"{target.path} has {links} names: the others would keep the old blocks",
            {"path": target.path},
        )
    for seal in grants.machine.table.of_file(target.file):
        if seal.live and (found := {"pin", "lease"} & set(seal.enforcers)):
            raise Refusal(
                "seal-conflict",
                f"seal {seal.id} of {target.path} is kept by {', '.join(found)}, under which the"
                " file cannot be looked at: have it returned first",
                {"seal": seal.id},
            )


def carry_attributes(source: int, there: int) -> None:
    """Owner, mode, extended attributes (access control lists among them), and times. Raises
    OSError."""
    status = os.fstat(source)
    os.fchown(there, status.st_uid, status.st_gid)
    os.fchmod(there, status.st_mode & 0o7777)
    for name in os.listxattr(source):
        os.setxattr(there, name, os.getxattr(source, name))
    os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange_names(directory: int, one: str, other: str) -> None:
    """renameat2(2) with RENAME_EXCHANGE. Raises OSError."""
    at = ctypes.c_int(directory)
    names = [ctypes.c_char_p(os.fsencode(name)) for name in (one, other)]
    libc.call("renameat2", at, names[0], at, names[1], ctypes.c_uint(_EXCHANGE))


def undo(record: Record) -> None:
    """What a service that died left of a replacement: at most the temporary name. It is the new
    file's, or, once the names have changed places, the old one's; a name that is of neither is
    somebody else's file, and stays."""
    path = Path(record.path).parent / record.temporary
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        ours = {record.inode, record.donor}
        if record.temporary and status.st_dev == record.device and status.st_ino in ours:
            path.unlink()
