"""Holding a seal while a command runs: recalls and signals reach it, and the seal goes back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from types import FrameType

from sealsvc.cli.child import StoppedChild
from sealsvc.cli.output import note
from sealsvc.cli.units import duration, exact_range
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.core.states import LIVE
from sealsvc.protocol.seals import Recall, Reclaim, Return, SealInfo

_FORWARDED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_RETURN_TIMEOUT = 10.0
_AWAY_PAUSE_MS = 100


class Holding:
    """One seal, the child that holds it, and the connection it was granted on."""

    def __init__(
        self, client: Client, child: StoppedChild, seal: SealInfo, recall_signal: signal.Signals
    ) -> None:
        self.client: Client | None = client
        self.child = child
        self.seal = seal
        self.recall_signal = recall_signal
        self._socket = client.path
        self._over = False

    def run(self, fd: int, patience: float) -> int:
        """Start the command with the sealed `fd`, see it through, return the seal. The command's
        exit status. `patience`: seconds to wait for others to unmap before giving up."""
        with forwarding(self.child):
            self.child.start(fd, self.seal.id)
            # At once: a copy kept here would stand in the way of the proof that none is left.
            os.close(fd)
            status = self._attend()
        self._give_back(patience)
        return status

    def _attend(self) -> int:
        """Pass recalls on until the command has ended."""
        self._pass_recalls()  # one may have come together with the grant
        poller = select.poll()
        poller.register(self.child.pidfd, select.POLLIN)
        if self.client is not None:
            poller.register(self.client.fileno(), select.POLLIN)
        while True:
            away = self.client is None and not self._over
            ready = dict(poller.poll(_AWAY_PAUSE_MS if away else None))
            if self.child.pidfd in ready:
                return self._reaped()
            for fd, what in ready.items():
                self._pass_recalls()
                if what & (select.POLLHUP | select.POLLERR):
                    poller.unregister(fd)
                    self._lose_service()
            if away and self._find_service() and self.client is not None:
                poller.register(self.client.fileno(), select.POLLIN)
                self._pass_recalls()

    def _reaped(self) -> int:
        status, failure = self.child.reap()
        if failure is not None:
            note(f"the command could not be executed: {failure.strerror}")
        return status

    def _pass_recalls(self) -> None:
        if self.client is None:
            return
        try:
            for push in self.client.pushes(timeout=0):
                if isinstance(push, Recall) and push.seal == self.seal.id:
                    if push.state in LIVE:
                        self._recalled(push)
                    else:
                        self._ended(f"{push.state}: {push.reason}")
        except Refusal as refusal:
            note(f"{refusal}; further recalls may go unnoticed")

    def _recalled(self, recall: Recall) -> None:
        self.child.signal(self.recall_signal)
        cause = recall.reason
        if (by := recall.operation) is not None:
            cause = f"{by.name} by {by.pid} ({by.comm or '?'})" + (f": {cause}" if cause else "")
        note(
            f"seal {recall.seal} ({exact_range(recall.range)}) is recalled"
            + (f" for {cause}" if cause else "")
            + f": due in {duration(recall.grace)}; sent {self.recall_signal.name}"
            f" to {self.child.pid}"
        )

    def _ended(self, why: str) -> None:
        """The seal is over while the command runs: it must not use the file as a holder any more,
        and gets the signal that a recall is."""
        self._over = True
        self.child.signal(self.recall_signal)
        note(
            f"seal {self.seal.id} is over ({why}): nothing keeps the file's extents in place any"
            f" more; sent {self.recall_signal.name} to {self.child.pid}"
        )

    def _lose_service(self) -> None:
        assert self.client is not None
        self.client.close()
        self.client = None
        note(
            f"the service has gone away; the command ({self.child.pid}) goes on, and the seal with"
            " it; recalls reach it once the service is back"
        )

    def _find_service(self) -> bool:
        """Has it been started again? Then it has the seal, and is told to send recalls here."""
        try:
            client = Client(self._socket)
        except Refusal:
            return False
        try:
            client.call(Reclaim, timeout=_RETURN_TIMEOUT, seal=self.seal.id)
        except (Refusal, TimeoutError) as error:
            client.close()
            if isinstance(error, Refusal) and error.code == "no-such-seal":
                self._ended("the service, which is back, has no such seal")
            return False
        self.client = client
        note("the service is back; recalls reach the command again")
        return True

    def _give_back(self, patience: float) -> None:
        """The command's status is the result, so that trouble here is told and not returned."""
        try:
            with self.client or Client(self._socket) as client:
                self._return(client, time.monotonic() + patience)
        except Refusal as refusal:
            # The service may notice the holder's end first, and release the seal by itself.
            if refusal.code != "no-such-seal":
                note(f"seal {self.seal.id} was not returned: {refusal}")
                if refusal.code == "still-mapped":
                    note("it stays until they unmap the range; then the service releases it")
        except TimeoutError as error:
            note(f"seal {self.seal.id} was not returned: {error}")

    def _return(self, client: Client, deadline: float) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                seal = client.call(Return, timeout=_RETURN_TIMEOUT, seal=self.seal.id).seal
            except Refusal as refusal:
                # Something that the command left running may be about to end as well.
                if refusal.code != "still-mapped" or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                if seal.state is not State.RETURNED:
                    note(f"seal {seal.id} ended as {seal.state.value}: {seal.reason}")
                return


@contextlib.contextmanager
def forwarding(child: StoppedChild) -> Iterator[None]:
    """Signals that come to us are meant for the command. Ignored ones stay ignored (nohup)."""

    def forward(signum: int, _: FrameType | None) -> None:
        if not (signum in _FROM_KEYBOARD and _in_foreground()):
            child.signal(signum)

    before = {s: signal.getsignal(s) for s in _FORWARDED}
    handled = [s for s, handler in before.items() if handler is not signal.SIG_IGN]
    for signum in handled:
        signal.signal(signum, forward)
    try:
        yield
    finally:
        for signum in handled:
            signal.signal(signum, before[signum])


def _in_foreground() -> bool:
    """Whether the terminal sends Ctrl-C to our process group, hence to the command already."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # ENXIO: no controlling terminal
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)
