"""The composition root: everything is built here, passed on, started, and stopped in reverse."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec

from sealsvc import clock, faults
from sealsvc.adoption import Adoption
from sealsvc.alarms import AlarmList
from sealsvc.audit import audit
from sealsvc.badblocks import BadBlocks
from sealsvc.canary import Canary
from sealsvc.config import Config, PolicySection
from sealsvc.control import ControlServer
from sealsvc.copies.jobs import CopyJobs
from sealsvc.copies.relocation.job import Relocations
from sealsvc.desk import Desk
from sealsvc.enforce import Enforcer, EnforcerSet
from sealsvc.enforce.bpf import BpfEnforcer
from sealsvc.enforce.fanotify import FanotifyEnforcer
from sealsvc.enforce.lease import LeaseEnforcer
from sealsvc.enforce.overlay_mounts import RISK, OverlayMounts
from sealsvc.enforce.pin import PinEnforcer
from sealsvc.enforce.sim import SimEnforcer, simulate
from sealsvc.errors import Refusal
from sealsvc.events import EventLog
from sealsvc.fence import Fencing
from sealsvc.grants import Grants
from sealsvc.history import Historian
from sealsvc.host import Host
from sealsvc.host.kernel import KernelHost, kernel_release
from sealsvc.host.proofs import Prover
from sealsvc.host.sim import SimHost
from sealsvc.integrity.service import Integrity
from sealsvc.integrity.travel import Travel
from sealsvc.job_store import JobStore
from sealsvc.jobs import JobRunner
from sealsvc.journal import Journal
from sealsvc.keeper import Keeper, own
from sealsvc.keeper_watch import KeeperWatch
from sealsvc.life import Life
from sealsvc.limits import RateLimit
from sealsvc.loop_watch import LoopWatch
from sealsvc.mounts import MountWatch
from sealsvc.namespaces import MountNamespaces
from sealsvc.notify import deliver, notify, pet_watchdog
from sealsvc.once import Once
from sealsvc.policy import Policy
from sealsvc.recall import Recaller
from sealsvc.reclaim import JOURNAL, Reclaimed, reclaim
from sealsvc.registry import Registry
from sealsvc.reload import PolicyFile
from sealsvc.returns import Returns
from sealsvc.ring_keeper import RingKeeper
from sealsvc.rings import Rings
from sealsvc.seals import SealTable
from sealsvc.service import Service, push
from sealsvc.tasks import Tasks
from sealsvc.tripwire import Tripwire
from sealsvc.users import Users
from sealsvc.workers import Workers

log = logging.getLogger(__name__)

_BAD_BLOCKS_PAUSE = 5.0  # seconds
_REFUSED_PAUSE = 5.0  # seconds between two looks at how many overlays were refused
_TAGS_WITHIN = 30.0  # seconds for all attachments to be opened at the start


class Daemon:
    """`keeper` is None on a simulated system, whose kernel dies with the service."""

    def __init__(
        self,
        config: Config,
        host: Host,
        enforcers: list[Enforcer],
        keeper: Keeper | None,
        overlays: OverlayMounts | None = None,
    ) -> None:
        self.config, self.host, self.keeper = config, host, keeper
        self.events = EventLog(config.service.event_history)
        self.tasks = Tasks(lambda reason: self.events.publish("alarm", reason=reason))
        self.table = SealTable()
        self.workers = Workers(config.service.workers)
        self.enforcers = EnforcerSet(enforcers, overlays)
        policy = Policy(config.policy)
        # Before anything is kept anew, whatever a dead service left is taken over.
        self.reclaimed = reclaim(keeper, self.enforcers) if keeper else Reclaimed([], [])
        self.journal = Journal(
            lambda fd: keeper.keep(JOURNAL, fd) if keeper else None, self.reclaimed.seals
        )
        faults.point("start:journalled")
        section = msgspec.structs.replace(config.registry, directory=str(config.registry_path))
        self.registry = Registry(section, self._registry_fails, self._registry_recovers)
        self.life = Life(self.table, self.events, self.journal, push)
        self.registry.owner_of = self.life.owner_of
        self.grants = Grants(host, self.enforcers, policy, self.life, self.workers, self.registry)
        returns = Returns(self.life, host, self.workers)
        self.fencing = Fencing(self.life, returns, self.tasks, config.fence)
        self.recaller = Recaller(self.life, self.fencing, config.policy, push)
        self.once = Once(config.service.idempotency, lambda seal: self.table.get(seal) is not None)
        self.users = Users(
            config.limits,
            lambda uid: uid in policy.section.operators,
            lambda reason: self.events.publish("alarm", reason=reason),
        )
        self.badblocks = BadBlocks(self.recaller, self.events, self.workers)
        self.service = Service(
            self.grants,
            returns,
            self.recaller,
            policy,
            self.enforcers,
            self.once,
            Historian(self.registry, host, policy, self.workers),
            self.users,
            kernel_release(),
        )
        self.tripwire = Tripwire(self.grants, self.recaller, self.tasks)
        self.rings = (
            Rings(RingKeeper(keeper), self.grants, policy, self.service.holders.watch)
            if keeper
            else None
        )
        if self.rings and keeper:
            self.rings.keeper.spin(config.service.ring_spin)
            adoption = Adoption(self.rings, self.recaller, returns, self.tasks)
            self.adoption, self.service.rings = adoption, self.rings
            keeper.on_ring, keeper.on_unproven = adoption.reported, adoption.unproven
            keeper.on_touched = self.tripwire.touched
        self.integrity: Integrity | None = None
        if not host.simulated:
            kept = config.registry_path / "integrity"
            self.integrity = Integrity(self.grants, self.events, self.tasks, config.integrity, kept)
            self.service.integrity = self.integrity
            self.service.pi_channels.log = self.integrity.errors
            returns.settle = self.service.pi_channels.before(self.integrity.returning)
            returns.unsettle = self.integrity.returned_not
        self.server = ControlServer(
            config.service.socket,
            int(config.service.socket_mode, 8),
            self.service.handle,
            self.events,
            self.tasks,
            policy.is_operator,
            self.users,
        )
        self.service.connections = lambda: len(self.server.connections)
        self.events.path_of = self.life.path_of
        self.events.watch(self.service.measures.hear)
        self.policy = policy
        self.policy_file = PolicyFile(config, self._take_policy)
        socket = Path(config.service.socket)
        store = JobStore(socket.with_name("jobs.json"), self.workers.of("jobs", 1).run)
        jobs = self.jobs = JobRunner(
            self.grants, self.recaller, self.events, self.tasks, self.service.paths, store
        )
        self.alarms = AlarmList(socket.with_name("alarms.json"), self.workers.of("alarms", 1).run)
        self.alarms.load()
        self.events.watch(self.alarms.hear)
        self.service.desk = Desk(self.service, self.policy_file, jobs, self.alarms)
        kept = config.registry_path / "copies.json"
        self.service.copies = CopyJobs(
            jobs, self.grants, self.users, self.service.paths, config.service.socket, kept
        )
        self.service.relocations = Relocations(
            jobs, self.grants, returns, self.recaller, config.registry_path / "relocations"
        )
        if self.integrity is not None:
            travel = Travel(self.integrity)
            self.service.copies.tags = self.service.relocations.tags = travel
        self._loop_watch = LoopWatch(
            self.service.measures.latencies["loop_lag"].add,
            lambda reason: self.events.publish("alarm", reason=reason),
        )
        # Called when the orderly end begins, for whoever wants it bounded.
        self.ending: Callable[[], None] = lambda: None
        self.wall_clock = clock.WallClock()
        self.keeper_watch = KeeperWatch(keeper.path, self._keeper_silent) if keeper else None
        if self.keeper_watch:
            self.service.require_keeper = self.keeper_watch.refuse
        self.canary = Canary(self.enforcers, self.events, self.workers, self._audit_all)
        self._stop = asyncio.Event()
        self._failure: Refusal | None = None
        self._lapses: dict[str, int] = {}

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises Refusal when it cannot go on."""
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
            stack.push_async_callback(self.jobs.save)
            stack.push_async_callback(self.tasks.stop)
            stack.push_async_callback(self.service.pi_channels.stop)
            self._start_registry()
            await self.jobs.resume()
            self._resume()
            faults.point("start:resumed")
            if self.integrity is not None:
                await self._start_integrity(self.integrity)
            await self.workers.run(functools.partial(self._arm, at_start=True))
            if isinstance(self.host, KernelHost):
                await self._watch_mounts(self.host.namespaces, stack)
            self.server.start()
            stack.callback(self.server.stop)
            self.tasks.spawn("loop watch", self._loop_watch.run())
            self.tasks.spawn("housekeeping", self._housekeeping())
            self.tasks.spawn("refused overlays", self._look_for_refused_overlays())
            self.tasks.spawn("canary", self.canary.run())
            self.tasks.spawn("bad blocks", self._look_for_bad_blocks())
            if self.config.service.audit_interval:
                self.tasks.spawn("audit", self._audit())
            log.info("serving on %s", self.config.service.socket)
            self.tasks.spawn("readiness", deliver("READY=1"))
            self.tasks.spawn("watchdog", pet_watchdog())
            await self._stop.wait()
            self.ending()
            notify("STOPPING=1")
        if self._failure:
            raise self._failure

    def _start(self, enforcer: Enforcer, stack: AsyncExitStack) -> None:
        if reason := self.enforcers.reasons[enforcer.name]:
            log.info("enforcer %s is not available: %s", enforcer.name, reason)
            return
        stack.callback(enforcer.stop)
        fd = enforcer.start(functools.partial(self.recaller.conflict, enforcer.name))
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, self._drain, enforcer, fd)
        stack.callback(loop.remove_reader, fd)

    def _drain(self, enforcer: Enforcer, fd: int) -> None:
        try:
            enforcer.drain()
        except Refusal as failure:
            # Without the keeper nothing is enforced any more. Whoever restarts us starts another.
            asyncio.get_running_loop().remove_reader(fd)
            self.events.publish("alarm", reason=f"{failure}: no seal is enforced any more")
            self._failure = failure
            self._stop.set()

    async def _start_integrity(self, integrity: Integrity) -> None:
        """A disk of the registry that hangs keeps nothing but the tags on it from being served."""
        try:
            await asyncio.wait_for(integrity.start(), _TAGS_WITHIN)
        except (TimeoutError, OSError) as error:
            self.service.integrity = None
            reason = f"no tags are served in this run: {error or 'their disk does not answer'}"
            self.events.publish("alarm", reason=reason)

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
        """Go on with the seals of the service that was here before."""
        for seal in self.reclaimed.seals:
            self.table.add(seal)
        for seal in self.reclaimed.seals:
            if not seal.exited.is_set():
                self.service.holders.watch(seal)
        if self.rings:
            self.adoption.resume(self.rings.resume(self.reclaimed.seals))
        for seal in self.reclaimed.seals:
            if seal.digest:
                asker = self.service.policy.asker(seal.asker_uid, seal.request.principal)
                self.once.remember(asker, seal.request.key, seal.digest, seal.info())
            self.fencing.resume(seal)
        if self.service.relocations:
            self.service.relocations.resume()
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
        """From the watch's thread."""
        assert self.keeper is not None
        self.keeper.silent = bool(reason)
        if reason:
            tell = functools.partial(self.events.publish, "alarm", reason=reason)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(tell)

    def _arm(self, *, at_start: bool = False) -> None:
        """Watch the file systems under the roots from the start: descriptors opened from now on are
        seen by every later seal."""
        if self.host.simulated:
            return  # there is no mount to open
        for filesystem in self.host.filesystems(self.policy.roots):
            if filesystem.unsupported:
                continue
            try:
                fd = os.open(filesystem.mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    for enforcer in self.enforcers.available:
                        enforcer.arm(filesystem, fd)
                    if not self.policy.accepts(RISK):
                        self.enforcers.refuse_overlays(filesystem, fd, at_start=at_start)
                finally:
                    os.close(fd)
            except (Refusal, OSError) as error:
                log.warning("%s is armed at its first grant: %s", filesystem.mount, error)

    def _reload(self) -> None:
        """SIGHUP, what `systemctl reload` sends."""
        try:
            self.policy_file.reload()
        except Refusal as refusal:
            log.error("the policy stays as it is: %s", refusal)

    def _take_policy(self, section: PolicySection, changed: list[str]) -> None:
        self.policy.section = self.recaller.policy = section
        self.service.rate = RateLimit(section.grants_per_second, section.grants_burst)
        self.events.publish("policy", changed=changed)
        if "roots" in changed:
            self.tasks.spawn("arm new roots", self.workers.run(self._arm))

    async def _watch_mounts(self, namespaces: MountNamespaces, stack: AsyncExitStack) -> None:
        watch = MountWatch(
            namespaces, self.table, self.events, self.workers, self.tasks, self.tripwire.overlaid
        )
        stack.push_async_callback(asyncio.to_thread, watch.stop)
        await watch.start()

    def _look_for_lapses(self) -> None:
        """An operation that passed unjudged may have changed a map: look at all of them."""
        for enforcer in self.enforcers.available:
            lapses, before = enforcer.lapses(), self._lapses.get(enforcer.name, 0)
            self._lapses[enforcer.name] = lapses
            if lapses > before and len(self.table):
                reason = f"{enforcer.name} may have let {lapses - before} operations through"
                self.events.publish("alarm", reason=reason)
                self.tasks.spawn(
                    "audit after a lapse", audit(self.grants, self.recaller, self.table)
                )

    async def _look_for_refused_overlays(self) -> None:
        """The keeper has their number. Apart from the housekeeping and in a thread, for it may be
        stopped."""
        overlays, before = self.enforcers.overlays, 0
        while overlays is not None and self.keeper is not None:
            await asyncio.sleep(_REFUSED_PAUSE)
            if self.keeper.silent:
                continue
            refused = await self.workers.of("overlays", 1).run(overlays.refused)
            if refused > before:
                reason = (
                    f"{refused - before} overlays of unprivileged users were refused: truncation"
                    f" through them is not seen, and {RISK} is no accepted risk"
                )
                self.events.publish("alarm", reason=reason)
            before = refused

    async def _housekeeping(self) -> None:
        for tick in itertools.count():
            await asyncio.sleep(0.5)
            if tick % 10 == 0:
                self._look_for_lapses()
                await self.alarms.save()
            self.tick()

    def tick(self) -> None:
        """What is due by the clock."""
        clock.look_for_jumps()
        self.recaller.publish_repeated()
        if jump := self.wall_clock.jump():
            way = "ahead" if jump > 0 else "back"
            reason = (
                f"the wall clock was set {way} by {abs(jump):.0f} s: times recorded are affected"
            )
            self.events.publish("alarm", reason=reason)
        if self.keeper and self.keeper.silent:
            return
        self.recaller.expire()
        self.recaller.relieve()
        self.journal.rewrite_if_large(self.table)
        if self.rings:
            self.rings.tick()
        for enforcer in self.enforcers.available:
            enforcer.forget()

    async def _look_for_bad_blocks(self) -> None:
        while not self.host.simulated:
            await asyncio.sleep(_BAD_BLOCKS_PAUSE)
            await self.badblocks.look(self.table)

    async def _audit(self) -> None:
        while True:
            await asyncio.sleep(self.config.service.audit_interval)
            await self._audit_all()

    async def _audit_all(self) -> None:
        await audit(self.grants, self.recaller, self.table)


def kernel_daemon(config: Config) -> Daemon:
    """The daemon on the real system."""
    # Each held operation, file and holder is a descriptor.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The event loop should not wait long for a thread that computes (the registry's).
    sys.setswitchinterval(0.0005)
    # A lease that breaks within a momentary probe signals the process: nobody needs to hear it.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    keeper = own(config.service.keeper_path)
    drain = config.enforcers.drain_timeout
    overlays = OverlayMounts(keeper)
    known: dict[str, Callable[[], Enforcer]] = {
        "bpf": lambda: BpfEnforcer(keeper, Path(config.service.bpf_path), drain_timeout=drain),
        "fanotify": lambda: FanotifyEnforcer(keeper, overlays, config.enforcers.linger, drain),
        "lease": lambda: LeaseEnforcer(keeper, overlays),
        "pin": lambda: PinEnforcer(keeper),
    }
    enforcers = [known[name]() for name in config.enforcers.use]
    prover = Prover.load()
    if prover.mapped >= 0:
        keeper.prover(prover.mapped)
    return Daemon(config, KernelHost(prover), enforcers, keeper, overlays)


def sim_daemon(config: Config) -> Daemon:
    """The same daemon on a simulated system, for development and for tests: needs no root."""
    host = SimHost()
    enforcer = SimEnforcer(host)
    daemon = Daemon(simulated(config), host, [enforcer], None)
    daemon.service.simulate = functools.partial(simulate, host, enforcer, daemon.tick)
    return daemon


def simulated(config: Config) -> Config:
    """Whoever runs a simulation is an operator in it, and there is one file system, /sim."""
    replace = msgspec.structs.replace
    policy = replace(
        config.policy,
        roots=config.policy.roots or ["/sim"],
        operators=[*config.policy.operators, os.getuid()],
    )
    registry = replace(config.registry, enabled=bool(config.registry.directory))
    return replace(config, policy=policy, registry=registry)
