"""The bpf enforcer: BPF LSM programs that refuse, inside the kernel, what would change a sealed
map.

Alone it keeps seals whose conflicts are refused. Behind another enforcer, which makes conflicts
wait, it refuses what that one cannot see. The programs and the seals are pinned in a bpffs, so that
they continue to refuse when the service is killed, until it starts again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, FileId, Gap, Kind, Operation, SealTerms
from sealsvc.enforce import bpf_programs, bpf_risks, openers
from sealsvc.enforce.base import Guard, Hold, Listener, Outcome, RecoveredGuard, Report, Verdict
from sealsvc.enforce.bpf_canary import BpfCanary
from sealsvc.enforce.bpf_programs import NotLoaded, Programs, check, text
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_messages import KeeperError, KeeperGone
from sealsvc.enforce.trips import Trips
from sealsvc.linux import proc_stat
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.native import ffi, lib

DIRECTORY = Path("/sys/fs/bpf/sealsvc")

_BATCH = 64
_PIDNS = 0xEFFFFFFC  # PROC_PID_INIT_INO, the inode of the initial pid namespace
_ALWAYS = frozenset({"file_permission", "setattr"})
_RUN = frozenset({"mapped"})  # programs that are run by a system call instead of being attached
SWITCH = Path("/proc/sys/kernel/ftrace_enabled")


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
        self._programs: Programs | None = None
        self._trips: Trips | None = None
        self._canary: BpfCanary | None = None
        self._missing: dict[str, str] = {}
        self._exclusive: dict[tuple[int, int], set[int]] = {}  # tokens, by device and inode
        self._listener = Listener()
        self._events = ffi.new("struct seal_bpf_event[]", _BATCH)

    def probe(self) -> str:
        """See Enforcer. Loads, attaches and pins the programs, or takes over those that are pinned:
        which ones load decides what the enforcer can do."""
        if self._programs is not None:
            return ""
        if os.stat("/proc/self/ns/pid").st_ino != _PIDNS:
            return "the service runs in a pid namespace, and the kernel's numbers are not its own"
        try:
            programs = self._programs = Programs.load(self.directory, self.without)
        except NotLoaded as error:
            return str(error)
        self._missing = programs.missing()
        if missing := self._missing.keys() & _ALWAYS:
            reason = f"without {', '.join(sorted(missing))} there is nothing to refuse with"
            self.stop()
            return reason
        lib.seal_bpf_exempt(programs.raw, os.getpid(), proc_stat.read(os.getpid()).start_time)
        self._trips = Trips(programs.raw, bpf_programs.objects(), self.directory)
        self._canary = BpfCanary(self.keeper, programs)
        return ""

    @property
    def _loaded(self) -> Programs:
        assert self._programs is not None
        return self._programs

    @property
    def missing(self) -> dict[str, str]:
        """The reasons why this kernel does not take programs, by name."""
        return dict(self._missing)

    def skips(self) -> int:
        """How often the kernel skipped a program because another task was preempted in it on the
        same processor."""
        return sum(p.misses for p in self._programs.states()) if self._programs else 0

    def missed(self) -> int:
        """The number of skips() that nothing makes up for, plus how often the canary began to pass.
        The keeper tries the canary whether or not a service is running."""
        if self._programs is None:
            return 0
        skipped = sum(p.misses for p in self._programs.states() if not p.spared)
        return skipped + (self._canary.missed if self._canary else 0)

    def unable(self, filesystem: Filesystem, terms: SealTerms) -> str:
        if filesystem.unsupported:
            return filesystem.unsupported
        if terms.conflict is not Conflict.REFUSE:
            return "BPF programs cannot make conflicts wait; they refuse them"
        return ""

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        return bpf_risks.gaps(self._missing.keys(), filesystem, kind)

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:
        if self._programs is None:
            return frozenset()
        return bpf_risks.closed(self._missing.keys(), filesystem, kind)

    def start(self, listener: Listener) -> int:
        self._listener = listener
        return int(lib.seal_bpf_fd(self._loaded.raw))

    def stop(self) -> None:
        """Unload the programs if no seal is in force. Otherwise all stays pinned and enforced."""
        if self._programs is None:
            return
        empty = not self._tokens()
        if empty:
            with suppress(KeeperError, KeeperGone):
                self.keeper.canary(-1, 0)
        self._programs.close()
        self._programs = self._trips = self._canary = None
        if empty:
            self.unpin()

    def unpin(self) -> None:
        """Remove the pins. Raises OSError."""
        bpf_programs.unpin(self.directory)

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
        if self._programs is None:
            return ""
        if SWITCH.exists() and SWITCH.read_text().strip() != "1":
            return "the sysctl kernel.ftrace_enabled is off: the kernel runs no BPF programs"
        attached = self._programs.on() - _RUN
        attached |= self._trips.attached if self._trips is not None else set()
        if gone := sorted(n for n in attached if not (self.directory / "links" / n).exists()):
            return f"pins below {self.directory}/links are gone: {', '.join(gone)}"
        return self._canary.look() if self._canary else ""

    # Seals

    def hold(self, target: Target, guard: Guard) -> _Hold:
        if reason := self.verify():
            raise Refusal("enforcer-unavailable", f"bpf: {reason}")
        key = ffi.new("struct seal_bpf_file *")
        check(lib.seal_bpf_identify(target.fd, key), "fstat")
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
            # The map entry exists: from now on nobody else can open it.
            openers.prove_sole(target, lambda: openers.pids(target))
        self._exclusive.setdefault(file, set()).add(guard.token)

    def _wait_for_passed(self, key: Any, target: Target, behind: str) -> None:
        """Wait for operations that passed the hooks before the map entry existed. Raises Refusal
        `try-later` when they do not end within `drain_timeout`."""
        limit = int(self.drain_timeout * 1e6)
        if not check(lib.seal_bpf_barrier(self._loaded.raw, key, limit), "barrier"):
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
        """See Programs.put()."""
        self._loaded.put(key, generation, reflink, guard)

    def take(self, key: Any, token: int) -> None:
        """Remove a guard from the BPF map."""
        file = (key.device, key.inode)
        if here := self._exclusive.get(file):
            here.discard(token)
            if not here:
                del self._exclusive[file]
        if self._programs is not None:
            self._programs.take(key, token)

    def _list(self) -> list[tuple[int, int, int]]:
        """Programs.guards() without that of the canary."""
        canary = self._canary.file if self._canary else None
        return [row for row in self._loaded.guards() if row[:2] != canary]

    def _tokens(self) -> set[int]:
        return {token for _, _, token in self._list()}

    def keep_only(self, tokens: set[int]) -> None:
        """Remove the guards of all seals but these; after a restart."""
        for device, inode, token in self._list():
            if token not in tokens:
                key = ffi.new("struct seal_bpf_file *", {"device": device, "inode": inode})
                self.take(key, token)

    def reclaim(self, claims: list[RecoveredGuard], kept: dict[str, int]) -> dict[int, Hold]:
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
        if self._programs is not None:  # one batch in a turn of the loop takes less than DRAIN_TIME
            count: int = lib.seal_bpf_events(self._programs.raw, self._events, _BATCH)
            for i in range(count):
                self._listener.conflict(_report(self._events[i]))
            for trip in self._trips.read() if self._trips is not None else ():
                self._listener.tripped(trip)

    def counters(self) -> dict[str, int]:
        """Events that were lost because the BPF ring was full, and missed()."""
        if self._programs is None:
            return {}
        return {
            "lost_events": int(lib.seal_bpf_lost_events(self._programs.raw)),
            "lapses": self.missed(),
        }


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


def _report(raw: Any) -> Report:
    count = min(raw.token_count, lib.SEAL_BPF_TOKENS)
    return Report(
        outcome=Outcome.REFUSED,
        waiter=0,
        file=FileId(os.makedev(raw.device >> 20, raw.device & 0xFFFFF), raw.inode),
        operation=Operation(
            name=text(lib.seal_op_name(raw.op)),
            offset=raw.offset,
            length=raw.length,
            pid=raw.tgid,
            tid=raw.tid,
            comm=text(raw.comm),
            uid=raw.uid,
        ),
        tokens=tuple(raw.tokens[i] for i in range(count)),
        error=raw.error,
    )
