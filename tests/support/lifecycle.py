"""The life of seals on a simulated host, without a service around it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sealsvc.core.model import ByteRange, Kind
from sealsvc.enforce.base import Listener
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.fence import Fencing
from sealsvc.lifecycle.grants import Grants, Requester
from sealsvc.lifecycle.journal import Journal
from sealsvc.lifecycle.policy import Policy
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.returns import Returns
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.lifecycle.state_machine import StateMachine
from sealsvc.linux import processes
from sealsvc.linux.processes import Peer
from sealsvc.protocol.events import Event
from sealsvc.protocol.seals import Grant, Recall, RecallAny
from sealsvc.registry import Registry
from sealsvc.runtime.config import FenceSection, PolicySection, RegistrySection
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.workers import Workers
from sealsvc.sim.enforcer import SimEnforcer, Waiter
from sealsvc.sim.host import SimHost

FILE = "/sim/file"
BLOCK = 4096
SIZE = 16 * BLOCK


class Lifecycle:
    """The parts, made as the service makes them. `recalls` and `recalls_any` are what holders were
    told, `failures` what tasks of the background failed with."""

    def __init__(self, section: PolicySection, fence: FenceSection) -> None:
        self.host = SimHost()
        self.enforcer = SimEnforcer(self.host)
        self.table = SealTable()
        self.events = EventLog(1000, self.table.path_of)
        self.failures: list[str] = []
        self.tasks = Tasks(self.failures.append)
        self.workers = Workers(2)
        self.policy = Policy(section)
        self.recalls: list[Recall] = []
        self.recalls_any: list[RecallAny] = []
        self.settled: list[ByteRange | None] = []
        self.unsettled: list[Seal] = []
        self.machine = StateMachine(
            self.table, self.events, Journal(lambda _: None), lambda _, recall: self._told(recall)
        )
        off = RegistrySection(enabled=False)
        registry = Registry(off, self.failures.append, lambda _: None, self.table.owner_of)
        enforcers = EnforcerSet([self.enforcer])
        self.grants = Grants(
            self.host, enforcers, self.policy, self.machine, self.workers, registry
        )
        self.returns = Returns(
            self.machine, self.host, self.workers, self._settle, self.unsettled.append
        )
        self.fencing = Fencing(self.machine, self.returns, self.tasks, fence)
        self.recaller = Recaller(
            self.machine, self.fencing, self.policy, lambda _, asked: self._asked(asked)
        )
        self.enforcer.start(Listener(conflict=lambda report: self.recaller.conflict("sim", report)))
        self.host.create(FILE, SIZE)

    def _told(self, recall: Recall) -> bool:
        self.recalls.append(recall)
        return True

    def _asked(self, asked: RecallAny) -> bool:
        self.recalls_any.append(asked)
        return True

    async def _settle(self, seal: Seal, part: ByteRange | None) -> bool:
        self.settled.append(part)
        return False

    async def grant(self, holder: int = 0, **terms: Any) -> Seal:
        """A seal of process `holder` (0: this one), shared unless `terms` say otherwise. Raises
        Refusal."""
        process = processes.by_pid(holder or os.getpid())
        requester = Requester(Peer(os.getpid(), os.getuid(), os.getgid()), process, None)
        request = Grant(id=0, **({"path": FILE, "kind": Kind.SHARED} | terms))
        seal, fd = await self.grants.grant(request, requester, None)
        os.close(fd)
        return seal

    def conflict(
        self, offset: int = 0, length: int = BLOCK, operation: str = "fallocate-punch-hole"
    ) -> Waiter:
        """An operation of another process begins, and is reported."""
        waiter = self.enforcer.conflict(FILE, operation, offset, length, 2**22 + 1)
        self.enforcer.drain()
        return waiter

    def told(self, name: str) -> list[Event]:
        """The events of this name, in order."""
        return [event for event in self.events.after(0, 1000)[0] if event.name == name]


@asynccontextmanager
async def lifecycle(
    policy: PolicySection | None = None, fence: FenceSection | None = None
) -> AsyncIterator[Lifecycle]:
    """A context with the parts. Afterwards no task of theirs may have failed."""
    section = policy or PolicySection(roots=["/sim"], operators=[os.getuid()])
    made = Lifecycle(section, fence or FenceSection(signal_grace=0.05, proof_timeout=30.0))
    try:
        yield made
        assert not made.failures
    finally:
        await made.tasks.stop()
        made.enforcer.stop()
        made.workers.stop()
        made.host.close()


def sleeper() -> subprocess.Popen[bytes]:
    """A process to hold seals; the caller ends it."""
    return subprocess.Popen(["sleep", "600"])
