"""The composition root: builds every part of the service, passes them to each other, starts them,
and stops them in reverse order."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec

from sealsvc.control.server import ControlServer
from sealsvc.copies.jobs import CopyJobs
from sealsvc.copies.relocation.job import Relocations
from sealsvc.copies.ring import RingCopies
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.enforce.base import Enforcer, Listener
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_watch import KeeperWatch
from sealsvc.enforce.overlay_mounts import OverlayMounts
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.integrity.channels import PiChannels
from sealsvc.integrity.service import Integrity
from sealsvc.integrity.travel import Travel
from sealsvc.jobs.jobs import JobRunner
from sealsvc.jobs.store import JobStore
from sealsvc.lifecycle.fence import Fencing
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.journal import Journal
from sealsvc.lifecycle.paths import Paths
from sealsvc.lifecycle.policy import Policy
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.recovery import JOURNAL, Reclaimed, reclaim
from sealsvc.lifecycle.returns import Returns
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.lifecycle.state_machine import StateMachine
from sealsvc.linux.host import Host
from sealsvc.linux.host.kernel import KernelHost, kernel_release
from sealsvc.linux.namespaces import MountNamespaces
from sealsvc.monitor.canary import Canary
from sealsvc.monitor.drift import audit
from sealsvc.monitor.holders import Holders
from sealsvc.monitor.mounts import MountWatch
from sealsvc.monitor.tripwire import Tripwire
from sealsvc.registry import Registry
from sealsvc.rings.keeper import RingKeeper
from sealsvc.rings.registrations import Rings
from sealsvc.rings.tracking import Tracking
from sealsvc.runtime import faults
from sealsvc.runtime.config import Config, PolicySection
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.limits import RateLimit
from sealsvc.runtime.loop_watch import LoopWatch
from sealsvc.runtime.notify import deliver, notify, pet_watchdog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import Users
from sealsvc.runtime.workers import Workers
from sealsvc.service.admin import Admin
from sealsvc.service.alarms import AlarmList
from sealsvc.service.arming import arm_roots
from sealsvc.service.capabilities import (
    channel_handlers,
    copy_answers,
    export_answers,
    integrity_answers,
    relocation_answers,
)
from sealsvc.service.foreign import ForeignNames
from sealsvc.service.granting import Granting
from sealsvc.service.history import Historian
from sealsvc.service.holding import Holding
from sealsvc.service.idempotency import ReplyCache
from sealsvc.service.looking import Looking
from sealsvc.service.metrics import Metrics
from sealsvc.service.metrics_report import MetricsReporter
from sealsvc.service.periodic import Periodic
from sealsvc.service.recalling import Recalling, push
from sealsvc.service.reload import PolicyFile
from sealsvc.service.router import Router
from sealsvc.service.system import System
from sealsvc.service.visible import Visible

log = logging.getLogger(__name__)

_TAGS_WITHIN = 30.0  # seconds in which all attachments must have been opened at the start


class Daemon:
    """The service. `keeper` is None on a simulated system, whose simulated kernel ends with the
    service. `source` is the configuration file (None: there is none), `overrides` adds what the
    command line set when it is read again. The constructor takes over the seals of the previous
    service, and raises what recovery.reclaim() raises."""

    def __init__(
        self,
        config: Config,
        host: Host,
        enforcers: list[Enforcer],
        keeper: Keeper | None,
        overlays: OverlayMounts | None = None,
        source: Path | None = None,
        overrides: Callable[[Config], Config] = lambda found: found,
    ) -> None:
        self.config, self.host, self.keeper = config, host, keeper
        self.table = SealTable()
        self.events = EventLog(config.service.event_history, self.table.path_of)
        self.tasks = Tasks(lambda reason: self.events.publish("alarm", reason=reason))
        self.workers = Workers(config.service.workers)
        self.enforcers = EnforcerSet(enforcers, overlays)
        policy = Policy(config.policy)
        # The seals of the previous service are taken over before a new journal replaces theirs.
        self.reclaimed = reclaim(keeper, self.enforcers) if keeper else Reclaimed([], [])
        self.journal = Journal(
            lambda fd: keeper.keep(JOURNAL, fd) if keeper else None, self.reclaimed.seals
        )
        faults.point("start:journalled")
        section = msgspec.structs.replace(config.registry, directory=str(config.registry_path))
        self.registry = Registry(
            section, self._registry_fails, self._registry_recovers, self.table.owner_of
        )
        self.machine = StateMachine(self.table, self.events, self.journal, push)
        self.grants = Grants(
            host, self.enforcers, policy, self.machine, self.workers, self.registry
        )
        self.integrity: Integrity | None = None
        if not host.simulated:
            kept = config.registry_path / "integrity"
            self.integrity = Integrity(self.grants, self.events, self.tasks, config.integrity, kept)
        self.tags_served = False  # true once their store is open
        ring_keeper = RingKeeper(keeper) if keeper else None
        self.pi_channels = PiChannels(
            self.grants, self.integrity.errors if self.integrity else None, ring_keeper
        )
        returns = Returns(
            self.machine, host, self.workers, self.pi_channels.before(self._settle), self._unsettle
        )
        self.fencing = Fencing(self.machine, returns, self.tasks, config.fence)
        self.recaller = Recaller(self.machine, self.fencing, policy, push)
        self.replies = ReplyCache(
            config.service.idempotency, lambda seal: self.table.get(seal) is not None
        )
        self.users = Users(
            config.limits,
            lambda uid: uid in policy.section.operators,
            lambda reason: self.events.publish("alarm", reason=reason),
        )
        self.tripwire = Tripwire(self.grants, self.recaller, self.tasks)
        paths = Paths(host, self.workers, policy)
        self.holders = Holders(self.fencing.holder_exited)
        self.rings = (
            Rings(ring_keeper, self.grants, policy, self.holders.watch) if ring_keeper else None
        )
        if self.rings:
            self.rings.keeper.spin(config.service.ring_spin)
        self.keeper_watch = KeeperWatch(keeper.path, self._keeper_silent) if keeper else None
        self.metrics = Metrics()
        self.visible = Visible(self.table, policy, paths)
        self.foreign = ForeignNames(host, paths)
        self.granting = Granting(
            self.grants,
            paths,
            self.foreign,
            self.replies,
            self.users,
            self.holders,
            self.rings,
            self.metrics,
            self._granted,
        )
        self.router = Router(
            policy,
            self.replies,
            self.registry,
            self.keeper_watch.refuse if self.keeper_watch else lambda: None,
        )
        self.server = ControlServer(
            config.service.socket,
            int(config.service.socket_mode, 8),
            self.router.handle,
            self.events,
            self.tasks,
            policy.is_operator,
            self.users,
        )
        self.events.watch(self.metrics.hear)
        self.policy = policy
        self.policy_file = PolicyFile(config, self._take_policy, source, overrides)
        socket = Path(config.service.socket)
        store = JobStore(socket.with_name("jobs.json"), self.workers.of("jobs", 1).run)
        jobs = self.jobs = JobRunner(
            self.grants, self.recaller, self.events, self.tasks, paths, store
        )
        self.alarms = AlarmList(
            socket.with_name("alarms.json"), self.workers.of("alarms", 1).run, self.table.owner_of
        )
        self.alarms.load()
        self.events.watch(self.alarms.hear)
        tags = Travel(self.integrity.attachments) if self.integrity else None
        kept = config.registry_path / "copies.json"
        copies = CopyJobs(jobs, self.grants, self.users, paths, config.service.socket, kept, tags)
        self.tracking: Tracking | None = None
        if self.rings:
            copy = RingCopies(copies, jobs, self.rings, self.users).carry_out
            self.tracking = Tracking(self.rings, self.recaller, returns, self.tasks, copy)
        kept = config.registry_path / "relocations"
        self.relocations = Relocations(jobs, self.grants, returns, self.recaller, kept, tags)
        self._route(returns, copies)
        self._loop_watch = LoopWatch(
            self.metrics.latencies["loop_lag"].add,
            lambda reason: self.events.publish("alarm", reason=reason),
        )
        self.periodic = Periodic(
            self.grants, self.recaller, self.enforcers, keeper, self.rings, self.alarms, self.tasks
        )
        self.canary = Canary(self.enforcers, self.events, self.workers, self.periodic.audit_all)
        self._stop = asyncio.Event()
        self._failure: Refusal | None = None
        self._reports: dict[Enforcer, int] = {}  # the descriptors to read them from

    def _route(self, returns: Returns, copies: CopyJobs) -> None:
        """Fill the router. The handlers of tags are added later, once their store is open."""
        grants, recaller, visible, router = self.grants, self.recaller, self.visible, self.router
        historian = Historian(self.registry, self.host, self.policy, self.workers)
        system = System(
            grants,
            returns,
            recaller,
            self.enforcers,
            kernel_release(),
            lambda: self.users.connections,
        )
        metrics = MetricsReporter(
            self.metrics,
            self.granting,
            recaller,
            self.enforcers,
            self.users,
            self.rings,
            lambda: self.integrity.counters() if self.integrity and self.tags_served else {},
        )
        admin = Admin(visible, recaller, self.policy_file, self.jobs, self.alarms, metrics)
        router.add(self.granting.answers(), self.granting.handlers())
        router.add(Holding(grants, returns, recaller, visible, self.metrics).answers())
        router.add(Looking(grants, recaller, visible, historian, self.foreign).answers())
        router.add(Recalling(grants, recaller, self.enforcers, visible, self.foreign).answers())
        router.add(historian.answers())
        router.add(system.answers())
        router.add(admin.answers())
        router.add({}, channel_handlers(self.pi_channels))
        router.add(*copy_answers(copies, self.registry))
        router.add(relocation_answers(self.relocations, visible))
        router.add(export_answers(self.policy, simulated=self.host.simulated))

    async def _granted(self, seal: Seal) -> None:
        if self.integrity and self.tags_served:
            await self.integrity.granted(seal)

    async def _settle(self, seal: Seal, part: ByteRange | None) -> bool:
        return self.integrity is not None and await self.integrity.seals.returning(seal, part)

    def _unsettle(self, seal: Seal) -> None:
        if self.integrity is not None:
            self.integrity.seals.returned_not(seal)

    async def run(self, ending: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT. `ending` is called when the orderly shutdown begins
        (runtime/ending.py bounds the time that it takes). Raises Refusal when the service cannot
        start, or when the keeper is lost."""
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with AsyncExitStack() as stack:
            stack.callback(self._leave_keeper)
            stack.push_async_callback(self.registry.close)
            stack.callback(self.workers.stop)
            if self.keeper_watch:
                self.keeper_watch.start()
                stack.callback(self.keeper_watch.stop)
            for enforcer in self.enforcers.enforcers:
                self._start(enforcer, stack)
            faults.point("start:enforced")
            stack.push_async_callback(self.jobs.save)
            stack.push_async_callback(self.tasks.stop)
            stack.push_async_callback(self.pi_channels.stop)
            if self.integrity is not None:
                stack.push_async_callback(self.integrity.stop)
            self._start_registry()
            await self.jobs.resume()
            self._resume()
            self._hear_reports()
            faults.point("start:resumed")
            if self.integrity is not None:
                await self._start_integrity(self.integrity)
            await self.workers.run(self._arm, True)
            if isinstance(self.host, KernelHost):
                await self._watch_mounts(self.host.namespaces, stack)
            self.server.start()
            stack.callback(self.server.stop)
            self.tasks.spawn("loop watch", self._loop_watch.run())
            self.tasks.spawn("canary", self.canary.run())
            self.periodic.start(self.config.service.audit_interval)
            log.info("serving on %s", self.config.service.socket)
            self.tasks.spawn("readiness", deliver("READY=1"))
            self.tasks.spawn("watchdog", pet_watchdog())
            await self._stop.wait()
            ending()
            notify("STOPPING=1")
        if self._failure:
            raise self._failure

    def _start(self, enforcer: Enforcer, stack: AsyncExitStack) -> None:
        if reason := self.enforcers.reasons[enforcer.name]:
            log.info("enforcer %s is not available: %s", enforcer.name, reason)
            return
        stack.callback(enforcer.stop)
        fd = self._reports[enforcer] = enforcer.start(self._listener(enforcer))
        stack.callback(asyncio.get_running_loop().remove_reader, fd)

    def _hear_reports(self) -> None:
        """Take what the enforcers report, from now on. Not before _resume(): a report of a seal
        that is not in the table yet would be taken for one of a seal that is over."""
        for enforcer, fd in self._reports.items():
            asyncio.get_running_loop().add_reader(fd, self._drain, enforcer, fd)

    def _listener(self, enforcer: Enforcer) -> Listener:
        conflict = functools.partial(self.recaller.conflict, enforcer.name)
        tripped, touched = self.tripwire.tripped, self.tripwire.touched
        if self.tracking is None:
            return Listener(conflict, tripped, touched=touched)
        tracked = self.tracking
        return Listener(conflict, tripped, tracked.reported, tracked.unverified, touched)

    def _drain(self, enforcer: Enforcer, fd: int) -> None:
        try:
            enforcer.drain()
        except Refusal as failure:
            # Without the keeper nothing is enforced. The restarted service starts a new keeper.
            asyncio.get_running_loop().remove_reader(fd)
            self.events.publish("alarm", reason=f"{failure}: no seal is enforced any more")
            self._failure = failure
            self._stop.set()

    async def _start_integrity(self, integrity: Integrity) -> None:
        """Open the tag store, with a time limit: if its disk hangs, only tags are not served."""
        try:
            await asyncio.wait_for(integrity.start(), _TAGS_WITHIN)
        except (TimeoutError, OSError) as error:
            reason = f"no tags are served in this run: {error or 'their disk does not answer'}"
            self.events.publish("alarm", reason=reason)
        else:
            self.tags_served = True
            self.router.add(*integrity_answers(integrity))

    def _start_registry(self) -> None:
        self.registry.start()
        self.events.watch(self.registry.watch)
        self.registry.started(self.config, self.enforcers.reasons)
        self.registry.present((seal.info(), seal.map) for seal in self.reclaimed.seals)

    def _registry_fails(self, reason: str) -> None:
        self.events.publish("alarm", reason=reason)

    def _registry_recovers(self, lost: int) -> None:
        self.events.publish("recorded", lost=lost)
        seals = list(self.table)
        self.registry.present((seal.info(), seal.map) for seal in seals if seal.live)

    def _resume(self) -> None:
        """Continue with the seals of the previous service: enter them in the table, then resume
        their recalls, fences and proofs."""
        for seal in self.reclaimed.seals:
            self.table.add(seal)
        for seal in self.reclaimed.seals:
            if not seal.exited.is_set():
                self.holders.watch(seal)
        if self.rings and self.tracking:
            self.tracking.resume(self.rings.resume(self.reclaimed.seals))
        for seal in self.reclaimed.seals:
            if seal.digest:
                asker = self.policy.asker(seal.asker_uid, seal.request.principal)
                self.replies.remember(asker, seal.request.key, seal.digest, seal.info())
            self.fencing.resume(seal)
        self.relocations.resume()
        for seal in self.reclaimed.torn:
            self.recaller.lose(seal, f"its enforcement by {', '.join(seal.enforcers)} is torn")
        if self.reclaimed.seals:
            self.events.publish("reclaimed", seals=len(self.reclaimed.seals))
            log.info("reclaimed %d seals", len(self.reclaimed.seals))
            self.tasks.spawn(
                "audit after the restart", audit(self.grants, self.recaller, self.table)
            )
        for enforcer in self.enforcers.available:
            enforcer.replay()
        if self.rings:
            self.rings.keeper.replay()

    def _leave_keeper(self) -> None:
        self.journal.close()
        if self.keeper is None:
            return
        if self.keeper.silent:
            log.warning("the keeper does not answer: %d seals are left to it", len(self.table))
        elif not self._failure and not self.keeper.leave(JOURNAL):
            log.warning(
                "%d seals stay enforced; `sealsvc release --all` ends them", len(self.table)
            )
        self.keeper.close()

    def _keeper_silent(self, reason: str) -> None:
        """Called on the thread of the keeper watch."""
        assert self.keeper is not None
        self.keeper.silent = bool(reason)
        if reason:
            tell = functools.partial(self.events.publish, "alarm", reason=reason)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(tell)

    def _arm(self, at_start: bool) -> None:
        arm_roots(self.host, self.enforcers, self.policy, at_start=at_start)

    def _reload(self) -> None:
        """Handle SIGHUP, which `systemctl reload` sends."""
        try:
            self.policy_file.reload()
        except Refusal as refusal:
            log.error("the policy stays as it is: %s", refusal)

    def _take_policy(self, section: PolicySection, changed: list[str]) -> None:
        self.policy.section = section
        self.granting.rate = RateLimit(section.grants_per_second, section.grants_burst)
        self.events.publish("policy", changed=changed)
        if "roots" in changed:
            self.tasks.spawn("arm new roots", self.workers.run(self._arm, False))

    async def _watch_mounts(self, namespaces: MountNamespaces, stack: AsyncExitStack) -> None:
        watch = MountWatch(
            namespaces, self.table, self.events, self.workers, self.tasks, self.tripwire.overlaid
        )
        stack.push_async_callback(asyncio.to_thread, watch.stop)
        await watch.start()
