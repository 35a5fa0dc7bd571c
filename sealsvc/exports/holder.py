"""The holder of an export whose requests the kernel serves: it seals the file, obeys recalls, and
lives on when the service does not."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

import msgspec

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, IoMode
from sealsvc.core.states import LIVE
from sealsvc.exports.base import Map, Mapped
from sealsvc.exports.guard import Guard
from sealsvc.exports.page_cache import drop
from sealsvc.exports.runtime import Record
from sealsvc.exports.static_map import recorded
from sealsvc.exports.stats import OwnStats
from sealsvc.exports.timeouts import timeouts_of
from sealsvc.protocol.seals import Recall, Reclaim, Return, SealInfo

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.2
_AWAY_MS = 200
# Seconds before the first try to seal again: the operation that waited has to get its file, or it
# is met, and meets the new seal, once more.
_LET_THROUGH = 0.005


class Stopped(Exception):
    """SIGTERM came while the holder waited for something."""


def hold(driver: Mapped, record: Record, *, recover: bool) -> int:
    """Serve until SIGTERM; an exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    mode = os.O_RDONLY if driver.spec.read_only else os.O_RDWR
    fd = os.open(driver.spec.file, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    if recover:
        driver.remember(record)
    with Client(driver.spec.socket) as client:
        holder = Holder(driver, record, client, fd)
        holder.begin(recover)
        try:
            holder.attend()
        finally:
            holder.end()
    return 0


class Holder:
    """`fd` is the file's descriptor: of one description throughout, so that each new seal is of the
    very file that was exported."""

    def __init__(self, driver: Mapped, record: Record, client: Client, fd: int) -> None:
        self.driver, self.record, self.client, self.fd = driver, record, client, fd
        self.seal: SealInfo | None = None
        self.away = False
        spec = driver.spec
        size = os.fstat(fd).st_size // 512 * 512
        self.size = size
        self.stats = OwnStats(driver.runtime.stats(spec.name), record.pid, size)
        self._stop, wake = socket.socketpair()
        for end in (self._stop, wake):
            end.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.guard: Guard | None = None

    def begin(self, recover: bool) -> None:
        """The device is there when it returns. A failure leaves nothing: but for a device that an
        earlier process left, which stays as it is."""
        try:
            map = self._sealed()
            self._guarded()
            self.driver.create(self.fd, map, recover)
        except BaseException:
            if not recover:
                self.driver.delete(self._noted())
                if self.guard is not None:
                    self.guard.end()
            raise
        self.record = msgspec.structs.replace(self._noted(), device=self.driver.device)
        self.driver.runtime.write(self.record)
        self.stats.serving()

    def _noted(self) -> Record:
        return msgspec.structs.replace(self.record, left=self.driver.left)

    def _guarded(self) -> None:
        times = timeouts_of(self.driver)
        self.guard = Guard(self.driver, self.fd, max(1.0, times.initiator - times.recall))
        self.guard.map()

    # The seal

    def _sealed(self) -> Map:
        """Grant, and the map, with nothing of the file left in the page cache."""
        spec = self.driver.spec
        found = os.fstat(self.fd).st_size
        if found < self.size:
            raise Refusal(
                "beyond-eof", f"the file is shorter ({found} bytes) than the device ({self.size})"
            )
        seal = self.client.grant(
            [self.fd],
            length=self.size,
            kind=spec.kind,
            conflict=Conflict.WAIT,
            iomode=IoMode.READ if spec.read_only else IoMode.RW,
            fence=spec.fence,
            grace=spec.grace,
            prepare=spec.prepare,
            tag=f"export {spec.name}",
        ).seal
        try:
            drop(self.fd)
            map = recorded(self.client, seal.id)
        except BaseException:
            with suppress(Refusal):
                self.client.call(Return, seal=seal.id)
            raise
        self.seal = seal
        self.stats.sealed(seal.id)
        return map

    # Serving

    def attend(self) -> None:
        try:
            while True:
                self._hear()
        except Stopped:
            return

    def _hear(self) -> None:
        """Do what has come, and wait for more. A push that came before the answer to a call is with
        the client already, and poll(2) does not tell of it."""
        assert self.guard is not None
        if not self.away:
            self._pushes()
        poller = select.poll()
        poller.register(self._stop, select.POLLIN)
        poller.register(self.guard.pidfd, select.POLLIN)
        if not self.away:
            poller.register(self.client.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poller.poll(_AWAY_MS if self.away else None)}
        if self._stop.fileno() in ready:
            raise Stopped
        if self.guard.pidfd in ready:
            log.error("the guard has ended: making another")
            self.guard.reap()
            self._guarded()
        if self.away:
            self._find_service()

    def _pushes(self) -> None:
        try:
            for push in self.client.pushes(timeout=0):
                if isinstance(push, Recall) and self.seal and push.seal == self.seal.id:
                    self._recalled(push)
        except Refusal as refusal:
            log.warning("%s", refusal)
        self.away = self._hung_up()

    def _hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self.client.fileno(), 0)
        return bool(poller.poll(0))

    def _find_service(self) -> None:
        assert self.seal is not None
        with suppress(Refusal, TimeoutError):
            self.client.reconnect()
            self.away = False
            try:
                self.client.call(Reclaim, seal=self.seal.id)
                log.info("the service is back")
            except Refusal as refusal:
                if refusal.code != "no-such-seal":
                    self.away = True
                    return
                # Nothing keeps the map in place.
                log.error("the service is back, and has no such seal")
                self._pause("the seal was lost", give_back=False)

    def _recalled(self, recall: Recall) -> None:
        cause = recall.operation.name if recall.operation else recall.reason
        log.info("recalled for %s", cause or "an operator")
        self._pause(f"recalled: {cause}", give_back=recall.state in LIVE)

    def _pause(self, why: str, *, give_back: bool) -> None:
        """From the first request that waits to the first that goes on."""
        assert self.guard is not None
        self.stats.paused(why)
        self.driver.recall()
        self.guard.unmap()
        seal, self.seal = self.seal, None
        if give_back and seal is not None:
            self._give_back(seal)
            time.sleep(_LET_THROUGH)
        map = self._again()
        self.guard.map()
        self.driver.resume(map)
        self.record = self._noted()
        self.driver.runtime.write(self.record)
        self.stats.serving()

    def _give_back(self, seal: SealInfo) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                self.client.call(Return, seal=seal.id)
                return
            except (Refusal, TimeoutError) as error:
                if isinstance(error, Refusal) and error.code == "no-such-seal":
                    return
                pause = self._rest(pause, error)

    def _again(self) -> Map:
        """Seal again, however long the conflict lasts."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._sealed()
            except (Refusal, TimeoutError, OSError) as error:
                pause = self._rest(pause, error)

    def _rest(self, pause: float, error: Exception) -> float:
        """Sleep so long, and how long the next time. Stopped when SIGTERM comes."""
        self.stats.paused(str(error))
        if pause >= _LONGEST_PAUSE:
            log.info("still paused: %s", error)
        if select.select([self._stop], [], [], pause)[0]:
            raise Stopped
        if self._hung_up():
            with suppress(Refusal):
                self.client.reconnect()
                if self.seal:
                    self.client.call(Reclaim, seal=self.seal.id)
        return min(pause * 2, _LONGEST_PAUSE)

    def end(self) -> None:
        """The device is removed before the seal goes."""
        self.driver.delete(self._noted())
        if self.guard is not None:
            self.guard.end()
        if self.seal is not None:
            deadline = time.monotonic() + self.driver.spec.grace
            while time.monotonic() < deadline:
                try:
                    self.client.call(Return, seal=self.seal.id)
                    break
                except (Refusal, TimeoutError) as error:
                    if not isinstance(error, Refusal) or error.code != "still-mapped":
                        log.warning("the seal was not returned: %s", error)
                        break
                    time.sleep(_FIRST_PAUSE)
        self.stats.ended()
        os.close(self.fd)
