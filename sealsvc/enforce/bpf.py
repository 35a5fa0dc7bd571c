"""The bpf enforcer: BPF LSM programs that refuse, inside the kernel, what would change a sealed
map.

Alone it keeps seals whose conflicts are refused. Behind another enforcer, which makes conflicts
wait, it refuses what that one cannot see. The programs and the seals are pinned in a bpffs, so that
they continue to refuse when the service is killed, until it starts again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, FileId, Kind, Operation
from sealsvc.enforce import guards, openers
from sealsvc.enforce.base import Claim, Guard, Hold, Listener, Outcome, Report, Verdict
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_messages import KeeperError, KeeperGone
from sealsvc.enforce.trips import Trips
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.seals import Grant
from sealsvc.protocol.system import Gap

DIRECTORY = Path("/sys/fs/bpf/sealsvc")

_FRONTS = {
    "": lib.SEAL_BPF_ALONE,
    "fanotify": lib.SEAL_BPF_BEHIND_FANOTIFY,
    "lease": lib.SEAL_BPF_BEHIND_LEASE,
}
_BATCH = 64
_MAX_PROGRAMS = 64
_PIDNS = 0xEFFFFFFC  # PROC_PID_INIT_INO, the inode of the initial pid namespace

# Two programs for one hook, whose parameters changed between kernels; they count as one.
_SETATTRS = frozenset({"setattr_by_idmap", "setattr_by_dentry"})
_ALWAYS = frozenset({"file_permission", "setattr"})
_RUN = frozenset({"mapped"})  # programs that are run by a system call instead of being attached
# The trials of the canary (native/keeper/canary.c), with the programs that each one needs.
_TRIALS: tuple[tuple[int, str, frozenset[str]], ...] = (
    (lib.KEEPER_CANARY_TRUNCATE, "truncate", frozenset()),
    (lib.KEEPER_CANARY_FALLOCATE, "fallocate", frozenset({"fallocate"})),
    (lib.KEEPER_CANARY_COPY, "copy_file_range", frozenset({"copy"})),
    (lib.KEEPER_CANARY_IOCTL, "ioctl", frozenset({"file_ioctl"})),
    (lib.KEEPER_CANARY_ATOMIC, "an atomic write", frozenset({"writev"})),
)
_CANARY_TOKEN = (1 << 64) - 2  # not a token that a seal can have
SWITCH = Path("/proc/sys/kernel/ftrace_enabled")


@dataclass(frozen=True, slots=True)
class _Program:
    """A program. `misses` is how often the kernel skipped it; `spared`: another program makes up
    for that."""

    name: str
    state: int
    spared: bool
    misses: int
    why: str


@dataclass(frozen=True, slots=True)
class _Cover:
    """A risk, and the programs that close it: it is open when one of them is missing. It exists on
    file systems of these `types` (with `reflink`: only those that share blocks), for seals of these
    `kinds`."""

    risk: str
    programs: frozenset[str]
    why: str
    types: tuple[str, ...] = ("xfs", "ext4")
    reflink: bool = False
    kinds: tuple[Kind, ...] = (Kind.SHARED, Kind.EXCLUSIVE)

    def concerns(self, filesystem: Filesystem, kind: Kind) -> bool:
        return (
            filesystem.type in self.types
            and (filesystem.reflink or not self.reflink)
            and kind in self.kinds
        )


def _cover(risk: str, programs: str, why: str, **more: Any) -> _Cover:
    return _Cover(risk, frozenset(programs.split()), why, **more)


# The risks that the programs close.
_COVERS = (
    _cover("bpf-truncate", "setattr", "truncate(2) is not refused"),
    _cover("bpf-fallocate", "file_permission fallocate", "fallocate(2) is not refused"),
    _cover("bpf-copy", "file_permission copy", "copy_file_range(2) is not refused", reflink=True),
    _cover(
        "bpf-clone", "file_permission clone clone_inner", "FICLONE is not refused", reflink=True
    ),
    _cover(
        "bpf-remap",
        "file_permission remap dedupe",
        "FIDEDUPERANGE and XFS_IOC_EXCHANGE_RANGE are not refused",
        types=("xfs",),
    ),
    _cover(
        "bpf-atomic-write",
        "file_permission writev aio uring",
        "writes with RWF_ATOMIC, which XFS does out of place, are not refused",
        types=("xfs",),
    ),
    _cover(
        "bpf-under-way",
        "fallocate_end copy_end clone_end dedupe_end writev_end aio_end uring_end ioctl_end"
        " ioctl_compat_end",
        "operations that were under way at the grant cannot be waited for",
    ),
    _cover(
        "bpf-open",
        "file_open",
        "opens by others are not refused",
        kinds=(Kind.EXCLUSIVE,),
    ),
    _cover(
        "ext4-move-ext",
        "file_ioctl file_ioctl_compat",
        "EXT4_IOC_MOVE_EXT is not refused",
        types=("ext4",),
    ),
    _cover(
        "xfs-swapext",
        "file_ioctl file_ioctl_compat",
        "XFS_IOC_SWAPEXT is not refused",
        types=("xfs",),
    ),
    _cover("loop-device", "file_ioctl file_ioctl_compat", "loop devices can be set up on the file"),
)
# Risks of other enforcers that this one closes, unless one of these own risks is open.
_CLOSES = {
    "ext4-move-ext": ("ext4-move-ext",),
    "xfs-swapext": ("xfs-swapext",),
    "loop-device": ("loop-device",),
    "overlay-truncate": ("bpf-truncate",),
}
# Own risks that must be closed for the risk that a holder changes the map of its exclusive seal.
_HOLDER_OPERATIONS = frozenset(cover.risk for cover in _COVERS) - {"bpf-open"}


def _objects() -> Path:
    """The directory of the programs: beside the extension module that loads them."""
    spec = find_spec("_sealsvc_native")
    beside = Path(spec.origin).parent if spec and spec.origin else Path()
    return beside / "sealsvc" / "bpf"


class _Hold:
    apart = True

    def __init__(
        self, enforcer: BpfEnforcer, key: Any, file: FileId, filesystem: Filesystem, guard: Guard
    ) -> None:
        self._enforcer, self._key, self._guard = enforcer, key, guard
        self._generation = file.generation or 0
        self._reflink = filesystem.reflink
        self._released = False
        self.anchor = -1

    @property
    def _name(self) -> str:
        """The name under which the keeper has the anchor, which keeps the inode in memory while no
        service is running."""
        return f"bpf:{self._guard.token}"

    def open_anchor(self, fd: int) -> None:
        """Open the anchor. Opened through /proc, it has its own open file description, apart from
        the holder's. Raises OSError."""
        self.anchor = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._enforcer.keeper.keep(self._name, self.anchor)

    def find_anchor(self, kept: dict[str, int]) -> None:
        if self._name in kept:
            self.anchor = os.dup(kept[self._name])

    def put(self) -> None:
        self._enforcer.put(self._key, self._generation, self._reflink, self._guard)

    def change(self, verdict: Verdict) -> None:
        if not self._released:
            self._guard = replace(self._guard, verdict=verdict)
            self.put()

    def resize(self, range: ByteRange) -> None:
        if not self._released:
            self._guard = replace(self._guard, range=range)
            self.put()

    def release(self) -> None:
        if self._released:
            return
        self._released = True
        self._enforcer.take(self._key, self._guard.token)
        if self.anchor >= 0:
            self._enforcer.keeper.drop(self._name)
            os.close(self.anchor)
            self.anchor = -1


class BpfEnforcer:
    """See Enforcer for the methods."""

    name = "bpf"
    late = False

    def __init__(
        self,
        keeper: Keeper,
        directory: Path = DIRECTORY,
        without: Sequence[str] = (),
        drain_timeout: float = 0.5,
    ) -> None:
        """Programs and maps are pinned below `directory`, on a bpffs. `without` names programs that
        are not loaded. A grant waits up to `drain_timeout` seconds for operations that are under
        way on its file."""
        self.keeper = keeper
        self.directory, self.without, self.drain_timeout = directory, without, drain_timeout
        self._bpf: Any = None
        self._trips: Trips | None = None
        self._canary: tuple[int, int] | None = None  # device and inode
        # How often the canary began to pass: before this service started, and since.
        self._passed_before = self._passed = 0
        self._missing: dict[str, str] = {}
        self._exclusive: dict[tuple[int, int], set[int]] = {}  # tokens, by device and inode
        self._listener = Listener()
        self._events = ffi.new("struct seal_bpf_event[]", _BATCH)

    def probe(self) -> str:
        """See Enforcer. Loads, attaches and pins the programs, or takes over those that are pinned:
        which ones load decides what the enforcer can do."""
        if self._bpf is not None:
            return ""
        programs = _objects() / "seal.bpf.o"
        if not programs.exists():
            return "built without clang or without libbpf: there are no BPF programs"
        if os.stat("/proc/self/ns/pid").st_ino != _PIDNS:
            return "the service runs in a pid namespace, and the kernel's numbers are not its own"
        out, why = ffi.new("struct seal_bpf **"), ffi.new("char[]", 512)
        result: int = lib.seal_bpf_open(
            os.fsencode(programs),
            os.fsencode(self.directory),
            ",".join(self.without).encode(),
            out,
            why,
            len(why),
        )
        if result < 0:
            return ffi.string(why).decode(errors="replace") or os.strerror(-result)
        self._bpf = out[0]
        self._missing = self._find_missing()
        if missing := self._missing.keys() & _ALWAYS:
            reason = f"without {', '.join(sorted(missing))} there is nothing to refuse with"
            self.stop()
            return reason
        lib.seal_bpf_exempt(self._bpf, os.getpid(), _start_time())
        self._trips = Trips(self._bpf, programs.parent, self.directory)
        self._set_canary()
        return ""

    def _set_canary(self) -> None:
        """Give the keeper a memfd for its trials. It is guarded with the verdict ARMING, so that
        refusals on it are not reported."""
        on = {p.name for p in self._programs() if p.state == lib.SEAL_BPF_ON}
        trials = sum(trial for trial, _, programs in _TRIALS if programs <= on)
        size = 2 * lib.KEEPER_CANARY_BLOCK
        fd = os.memfd_create("sealsvc-canary")
        try:
            os.ftruncate(fd, size)
            key = ffi.new("struct seal_bpf_file *")
            _check(lib.seal_bpf_identify(fd, key), "fstat")
            self._canary = (key.device, key.inode)
            guard = Guard(_CANARY_TOKEN, ByteRange(0, size), 0, False, Verdict.ARMING)
            self.put(key, 0, True, guard)
            with suppress(KeeperError):  # an older keeper has no canary
                self._passed_before += self.keeper.canary(fd, trials)[0]
        finally:
            os.close(fd)

    def _try_canary(self) -> str:
        """Which operations pass that must be refused, as text; empty when none does."""
        if self._canary is None:
            return ""
        try:
            self._passed, failing = self.keeper.try_canary()
        except KeeperError:
            return ""
        passed = [name for trial, name, _ in _TRIALS if failing & trial]
        return f"on a file of our own these are not refused: {', '.join(passed)}" if passed else ""

    def _find_missing(self) -> dict[str, str]:
        """The reasons why programs are off, by name. The two for setattr count as one."""
        programs = self._programs()
        names = {p.name: p.why for p in programs if p.state == lib.SEAL_BPF_OFF}
        on = {p.name for p in programs if p.state == lib.SEAL_BPF_ON}
        for name in _SETATTRS:
            why = names.pop(name, "")
            if why and not on & _SETATTRS:
                names["setattr"] = why
        return names

    def _programs(self) -> list[_Program]:
        out = ffi.new("struct seal_bpf_program[]", _MAX_PROGRAMS)
        count = lib.seal_bpf_programs(self._bpf, out, _MAX_PROGRAMS)
        return [
            _Program(_text(p.name), int(p.state), bool(p.spared), int(p.misses), _text(p.why))
            for p in (out[i] for i in range(count))
        ]

    @property
    def missing(self) -> dict[str, str]:
        """The reasons why this kernel does not take programs, by name."""
        return dict(self._missing)

    def skips(self) -> int:
        """How often the kernel skipped a program because another task was preempted in it on the
        same processor."""
        return sum(p.misses for p in self._programs()) if self._bpf is not None else 0

    def lapses(self) -> int:
        """The number of skips() that nothing makes up for, plus how often the canary began to pass.
        The keeper tries the canary whether or not a service is running."""
        if self._bpf is None:
            return 0
        skipped = sum(p.misses for p in self._programs() if not p.spared)
        return skipped + self._passed_before + self._passed

    def unable(self, filesystem: Filesystem, request: Grant) -> str:
        if filesystem.unsupported:
            return filesystem.unsupported
        if request.conflict is not Conflict.REFUSE:
            return "BPF programs cannot make conflicts wait; they refuse them"
        return ""

    def _open_risks(self, filesystem: Filesystem, kind: Kind) -> list[_Cover]:
        return [
            cover
            for cover in _COVERS
            if cover.programs & self._missing.keys() and cover.concerns(filesystem, kind)
        ]

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        return tuple(
            Gap(
                risk=cover.risk,
                kinds=list(cover.kinds),
                why=f"{cover.why}: this kernel does not take the BPF program"
                f" {', '.join(sorted(cover.programs & self._missing.keys()))}",
            )
            for cover in self._open_risks(filesystem, kind)
        )

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:
        if self._bpf is None:
            return frozenset()
        left = {cover.risk for cover in self._open_risks(filesystem, kind)}
        closed = {risk for risk, needs in _CLOSES.items() if not left.intersection(needs)}
        if not left & _HOLDER_OPERATIONS:
            closed.add("holder-operations")
        return frozenset(closed)

    def start(self, listener: Listener) -> int:
        self._listener = listener
        return int(lib.seal_bpf_fd(self._bpf))

    def stop(self) -> None:
        """Unload the programs if no seal is in force. Otherwise all stays pinned and enforced."""
        if self._bpf is None:
            return
        empty = not self._tokens()
        if empty:
            with suppress(KeeperError, KeeperGone):
                self.keeper.canary(-1, 0)
        bpf, self._bpf, self._trips = self._bpf, None, None
        lib.seal_bpf_close(bpf)
        if empty:
            self.unpin()

    def unpin(self) -> None:
        """Remove the pins. Raises OSError."""
        unpin(self.directory)

    def arm(self, filesystem: Filesystem, fd: int) -> None:  # noqa: ARG002
        """Attach the tripwire, whose functions exist only once such a file system is mounted. The
        LSM hooks need nothing: they see descriptors whenever they were opened."""
        if self._trips is not None:
            self._trips.watch(filesystem.type)

    def untripped(self) -> list[str]:
        return self._trips.missing() if self._trips is not None else []

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Nothing to do: nothing is kept for later seals."""

    def verify(self) -> str:
        """See Enforcer. Checks that ftrace is on, because the kernel calls all programs, LSM
        programs too, through ftrace, and stops without notice when kernel.ftrace_enabled is 0; that
        the pins exist, without which every refusal would end with the service; and, for any other
        cause, that operations which the keeper tries are refused."""
        if self._bpf is None:
            return ""
        if SWITCH.exists() and SWITCH.read_text().strip() != "1":
            return "the sysctl kernel.ftrace_enabled is off: the kernel runs no BPF programs"
        attached = {p.name for p in self._programs() if p.state == lib.SEAL_BPF_ON} - _RUN
        attached |= self._trips.attached if self._trips is not None else set()
        if gone := sorted(n for n in attached if not (self.directory / "links" / n).exists()):
            return f"pins below {self.directory}/links are gone: {', '.join(gone)}"
        return self._try_canary()

    # Seals

    def hold(self, target: Target, guard: Guard) -> _Hold:
        if reason := self.verify():
            raise Refusal("enforcer-unavailable", f"bpf: {reason}")
        key = ffi.new("struct seal_bpf_file *")
        _check(lib.seal_bpf_identify(target.fd, key), "fstat")
        hold = _Hold(self, key, target.file, target.filesystem, guard)
        self.arm(target.filesystem, target.fd)
        with ExitStack() as undo:
            undo.callback(hold.release)
            hold.put()
            if guard.exclusive:
                self._prove_exclusive(key, target, guard)
            self._wait_for_passed(key, target, guard.behind)
            if not guard.behind:
                hold.open_anchor(target.fd)
            undo.pop_all()
        return hold

    def _prove_exclusive(self, key: Any, target: Target, guard: Guard) -> None:
        """Prove that nobody else has the file open. Not needed where an enforcer in front has its
        own proof, nor beside another exclusive seal (of the same holder): nobody could open the
        file since that was made."""
        file = (key.device, key.inode)
        if not guard.behind and file not in self._exclusive:
            _prove_sole(target)
        self._exclusive.setdefault(file, set()).add(guard.token)

    def _wait_for_passed(self, key: Any, target: Target, behind: str) -> None:
        """Wait for operations that passed the hooks before the map entry existed. Raises Refusal
        `try-later` when they do not end within `drain_timeout`."""
        limit = int(self.drain_timeout * 1e6)
        if not _check(lib.seal_bpf_barrier(self._bpf, key, limit), "barrier"):
            raise Refusal(
                "try-later",
                f"an operation that may change the extent map of {target.path} is under way",
                {"path": target.path},
                retry_after=0.1,
            )
        # Not needed behind a lease, which cannot be taken while somebody truncates the file; and
        # opening the file here would break that lease.
        if behind != "lease":
            _wait_for_truncation(target)

    def put(self, key: Any, generation: int, reflink: bool, guard: Guard) -> None:
        """Enter or change a guard in the BPF map. `key` is a struct seal_bpf_file. Raises Refusal
        `limit-reached` or `io-error`."""
        struct = ffi.new(
            "struct seal_bpf_range *",
            {
                "start": guard.range.offset,
                "end": guard.range.end,
                "token": guard.token,
                "holder": guard.holder,
                "exclusive": int(guard.exclusive),
                "policy": _policy(guard),
                "front": _front(guard),
            },
        )
        result: int = lib.seal_bpf_put(self._bpf, key, generation, int(reflink), struct)
        if result in (-errno.ENOSPC, -errno.E2BIG):
            limit = lib.SEAL_BPF_RANGES if result == -errno.ENOSPC else "no more"
            raise Refusal("limit-reached", f"the bpf enforcer keeps {limit} seals on one file")
        _check(result, "bpf_map_update_elem")

    def take(self, key: Any, token: int) -> None:
        """Remove a guard from the BPF map."""
        file = (key.device, key.inode)
        if here := self._exclusive.get(file):
            here.discard(token)
            if not here:
                del self._exclusive[file]
        if self._bpf is not None:
            lib.seal_bpf_take(self._bpf, key, token)

    def _list(self) -> list[tuple[int, int, int]]:
        """(device, inode, token) of every seal in the maps, without the canary's. The devices are
        in the kernel's own encoding (MKDEV)."""
        room = 1024
        while True:
            out = ffi.new("struct seal_bpf_seal[]", room)
            count = _check(lib.seal_bpf_list(self._bpf, out, room), "bpf_map_get_next_key")
            if count <= room:
                rows = [(out[i].file.device, out[i].file.inode, out[i].token) for i in range(count)]
                return [row for row in rows if row[:2] != self._canary]
            room = count + 64

    def _tokens(self) -> set[int]:
        return {token for _, _, token in self._list()}

    def keep_only(self, tokens: set[int]) -> None:
        """Remove the guards of all seals but these; after a restart."""
        for device, inode, token in self._list():
            if token not in tokens:
                key = ffi.new("struct seal_bpf_file *", {"device": device, "inode": inode})
                self.take(key, token)

    def reclaim(self, claims: list[Claim], kept: dict[str, int]) -> dict[int, Hold]:
        wanted = {claim.guard.token: claim for claim in claims}
        self.keep_only(set(wanted))
        holds: dict[int, Hold] = {}
        for device, inode, token in self._list():
            claim = wanted[token]
            behind = "" if claim.first == self.name else claim.first
            guard = replace(claim.guard, behind=behind)
            key = ffi.new("struct seal_bpf_file *", {"device": device, "inode": inode})
            holds[token] = hold = _Hold(self, key, claim.file, claim.filesystem, guard)
            hold.find_anchor(kept)
            if guard.exclusive:
                self._exclusive.setdefault((device, inode), set()).add(token)
        return holds

    def replay(self) -> None:
        """Nothing to do: this enforcer holds no operation."""

    # Reports

    def drain(self) -> None:
        if self._bpf is not None:  # one batch in a turn of the loop takes less than DRAIN_TIME
            count: int = lib.seal_bpf_events(self._bpf, self._events, _BATCH)
            for i in range(count):
                self._listener.conflict(_report(self._events[i]))
            for trip in self._trips.read() if self._trips is not None else ():
                self._listener.tripped(trip)

    def counters(self) -> dict[str, int]:
        """Events that were lost because the BPF ring was full, and lapses()."""
        if self._bpf is None:
            return {}
        return {"lost_events": int(lib.seal_bpf_lost_events(self._bpf)), "lapses": self.lapses()}


def unpin(directory: Path) -> bool:
    """Remove the pins below `directory`, also those of a service that has ended, so that nothing is
    refused any more. False when there were none. Raises OSError."""
    if not directory.exists():
        return False
    result: int = lib.seal_bpf_unpin(os.fsencode(directory))
    if result < 0:
        raise OSError(-result, os.strerror(-result), str(directory))
    return True


def _front(guard: Guard) -> int:
    watched = guard.verdict is Verdict.WATCH
    return int(lib.SEAL_BPF_BEHIND_WATCH if watched else _FRONTS[guard.behind])


def _policy(guard: Guard) -> int:
    watched = guard.verdict is Verdict.WATCH
    return int(guards.POLICIES[Verdict.WAIT if watched else guard.verdict])


def _text(raw: Any) -> str:
    return bytes(ffi.string(raw)).decode(errors="replace")


def _wait_for_truncation(target: Target) -> None:
    """Wait until a truncation that is under way has ended. Truncations are not among the operations
    of seal_bpf_barrier: their hook is called with the inode's lock held, which they keep to the
    end. XFS takes that lock to read an extent map, ext4 only to look for a hole (SEEK_HOLE), which
    is done here."""
    fd = os.open(f"/proc/self/fd/{target.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # ENXIO: the file is empty now
            os.lseek(fd, 0, os.SEEK_HOLE)
    finally:
        os.close(fd)


def _check(result: int, call: str) -> int:
    if result < 0:
        raise Refusal(
            "io-error", f"{call}: {os.strerror(-result)}", {"call": call, "errno": -result}
        )
    return result


def _start_time() -> int:
    """The start time of this process in clock ticks since boot: field 22 of proc_pid_stat(5)."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def _prove_sole(target: Target) -> None:
    """Raises Refusal `file-in-use` if somebody else has the file open. Called once the map entry
    exists, after which nobody else can open it."""
    if openers.is_sole(target):
        return
    raise Refusal(
        "file-in-use",
        f"{target.path} is open elsewhere: an exclusive seal has no other opener",
        {"path": target.path, "pids": openers.pids(target)},
        retry_after=1.0,
    )


def _report(raw: Any) -> Report:
    count = min(raw.token_count, lib.SEAL_BPF_TOKENS)
    return Report(
        outcome=Outcome.REFUSED,
        waiter=0,
        file=FileId(os.makedev(raw.device >> 20, raw.device & 0xFFFFF), raw.inode),
        operation=Operation(
            name=_text(lib.seal_op_name(raw.op)),
            offset=raw.offset,
            length=raw.length,
            pid=raw.tgid,
            tid=raw.tid,
            comm=_text(raw.comm),
            uid=raw.uid,
        ),
        tokens=tuple(raw.tokens[i] for i in range(count)),
        error=raw.error,
    )
