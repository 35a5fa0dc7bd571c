"""A seal as a context of its holder: the sealed file, its mapping, and what happens on a recall.

    with client.hold("/pmem/db", on_recall=stop_using) as held:
        view = held.mmap()

Each has a connection of its own, on which its recalls arrive. What is asked of the service goes
over another one, so that any thread may do it. A child of fork(2) has neither seal nor mapping, and
what it inherits is closed: the holder alone can give the seal back.
"""

from __future__ import annotations

import asyncio
import inspect
import mmap
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self

from sealsvc.client.async_socket import AsyncClient
from sealsvc.client.socket import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import IoMode, State
from sealsvc.protocol.seals import (
    Downgrade,
    Mapped,
    MappingReport,
    Recall,
    RecallProgress,
    Reclaim,
    Renew,
    Return,
    SealInfo,
)

if TYPE_CHECKING:
    import numpy as np

_PAUSE = 0.05
_PATIENCE = 0.5  # seconds of trying to connect, between two looks whether that is still wanted


class _File:
    """The sealed descriptor, and what is mapped through it, until close."""

    def __init__(self, fd: int, seal: SealInfo) -> None:
        self.fd, self.seal = fd, seal
        self.owner = os.getpid()
        self._mapping: mmap.mmap | None = None
        self._view: memoryview | None = None

    @property
    def view(self) -> memoryview:
        """The bytes of the sealed range, mapped shared; writable unless the seal is for reading."""
        self.refuse_child()
        if self._view is None:
            span, unit = self.seal.range, mmap.ALLOCATIONGRANULARITY
            start = span.offset // unit * unit
            reading = self.seal.iomode is IoMode.READ
            access = mmap.PROT_READ if reading else mmap.PROT_READ | mmap.PROT_WRITE
            length = span.offset - start + span.length
            self._mapping = mmap.mmap(self.fd, length, mmap.MAP_SHARED, access, offset=start)
            # A child's copy would keep the seal from being given back.
            self._mapping.madvise(mmap.MADV_DONTFORK)
            self._view = memoryview(self._mapping)[span.offset - start :]
        return self._view

    def refuse_child(self) -> None:
        if os.getpid() != self.owner:
            raise RuntimeError(
                f"seal {self.seal.id} belongs to process {self.owner}; a child of fork(2) has none"
            )
        if self.fd < 0:
            raise ValueError(f"seal {self.seal.id} was given back")

    def close(self) -> None:
        """Raises BufferError, and leaves all as it is, while an array of the mapping is in use."""
        if self._view is not None and self._mapping is not None:
            self._view.release()
            self._mapping.close()
            self._view = self._mapping = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def forget(self) -> None:
        """In a child: the mapping is not there (MADV_DONTFORK), the descriptor is a copy."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Sealed:
    """What both kinds have."""

    def __init__(self, fd: int, seal: SealInfo) -> None:
        self._file = _File(fd, seal)
        _all.add(self)

    @property
    def seal(self) -> SealInfo:
        """As it was granted, or last told of."""
        return self._file.seal

    @property
    def id(self) -> str:
        return self.seal.id

    def fileno(self) -> int:
        """The sealed descriptor: map it and hand it on as you like, it stays ours to close."""
        self._file.refuse_child()
        return self._file.fd

    def mmap(self) -> memoryview:
        """The bytes of the sealed range, mapped shared; writable unless the seal is for reading.
        They are unmapped when the seal is given back, which fails with BufferError while anything
        made of them (an array) is in use. RuntimeError in a child of fork(2)."""
        return self._file.view

    def array(self, dtype: np.typing.DTypeLike = "u1") -> np.typing.NDArray[Any]:
        """The same as a numpy array of one dimension; numpy must be installed."""
        import numpy as np

        return np.frombuffer(self._file.view, dtype)


_all: weakref.WeakSet[_Sealed] = weakref.WeakSet()


def _forget_all() -> None:
    for sealed in list(_all):
        sealed._file.forget()


os.register_at_fork(after_in_child=_forget_all)


def _end_of(seal: SealInfo) -> Recall:
    """What the service would have said of a seal that it had no more when it came back."""
    return Recall(
        seal=seal.id,
        seqid=seal.seqid,
        tag=seal.tag,
        range=seal.range,
        wanted=seal.range,
        grace=0.0,
        reason="the service was started again and has no such seal",
        fence=seal.fence,
        state=State.REVOKED,
    )


class Held(_Sealed):
    """Made by Client.hold. `on_recall` is called in a thread of its own, with each Recall, and with
    one whose state tells that the seal is over."""

    def __init__(
        self, client: Client, fd: int, seal: SealInfo, on_recall: Callable[[Recall], None] | None
    ) -> None:
        super().__init__(fd, seal)
        self._client = client
        self._given_back = False
        self.recalled = threading.Event()
        self.last_recall: Recall | None = None
        self._on_recall = on_recall
        self._listener = threading.Thread(target=self._listen, daemon=True, name=f"seal {seal.id}")
        self._listener.start()

    def _listen(self) -> None:
        """Until the seal is given back; the service may be started again meanwhile."""
        while not self._given_back:
            for push in self._client.pushes():
                if isinstance(push, Recall) and push.seal == self.id:
                    self._heard(push)
            if not self._given_back and self._is_over():
                return

    def _heard(self, recall: Recall) -> None:
        self.last_recall = recall
        self.recalled.set()
        if self._on_recall is not None:
            self._on_recall(recall)

    def _is_over(self) -> bool:
        """The service has gone: has the one that comes back this seal no more? Else it is told to
        send the recalls here."""
        while not self._given_back:
            try:
                self._client.reconnect(_PATIENCE)
                self._client.call(Reclaim, seal=self.id)
                return False
            except TimeoutError:
                continue
            except Refusal as refusal:
                if refusal.code == "no-such-seal":
                    self._heard(_end_of(self.seal))
                    return True
                time.sleep(_PAUSE)  # not there yet, or it still has the connection that was lost
        return True

    def _ask(self, kind: Any, **fields: Any) -> Any:
        self._file.refuse_child()
        with Client(self._client.path, self._client.timeout) as client:
            return client.call(kind, seal=self.id, **fields).result

    def _changed(self, kind: Any, **fields: Any) -> SealInfo:
        info = self._ask(kind, **fields)
        assert isinstance(info, SealInfo)
        self._file.seal = info
        return info

    def validate(self) -> MappingReport:
        """Have the mapping proven. Raises Refusal mapping-invalid."""
        report = self._ask(Mapped)
        assert isinstance(report, MappingReport)
        return report

    def renew(self, ttl: float | None = None) -> SealInfo:
        """`ttl` in seconds (None: the seal's own)."""
        return self._changed(Renew, ttl=ttl)

    def progress(self) -> SealInfo:
        """The recall is being seen to, and takes longer: the grace begins anew."""
        return self._changed(RecallProgress)

    def downgrade(self) -> SealInfo:
        """Only read from now on. Raises Refusal still-mapped while the range is mapped writably."""
        return self._changed(Downgrade)

    def close(self) -> None:
        """Unmap, close, and give the seal back. Raises BufferError while an array of the mapping is
        in use, and Refusal still-mapped while another process maps the range; then the seal stays,
        and close can be called again. Of a seal that is over already there is nothing to do."""
        if self._given_back or os.getpid() != self._file.owner:
            return
        self._file.close()
        try:
            with Client(self._client.path, self._client.timeout) as client:
                client.call(Return, seal=self.id)
        except Refusal as refusal:
            if refusal.code != "no-such-seal":
                raise
        self._given_back = True
        self._client.interrupt()
        if threading.current_thread() is not self._listener:
            self._listener.join()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncHeld(_Sealed):
    """Made by AsyncClient.hold. `on_recall` is called in the event loop; it may be a coroutine
    function."""

    def __init__(
        self,
        client: AsyncClient,
        fd: int,
        seal: SealInfo,
        on_recall: Callable[[Recall], Awaitable[None] | None] | None,
    ) -> None:
        super().__init__(fd, seal)
        self._client, self._on_recall = client, on_recall
        self._given_back = False
        self.recalled = asyncio.Event()
        self.last_recall: Recall | None = None
        self._listener = asyncio.create_task(self._listen(), name=f"seal {seal.id}")

    async def _listen(self) -> None:
        async for push in self._client.pushes():
            if isinstance(push, Recall) and push.seal == self.id:
                self.last_recall = push
                self.recalled.set()
                if self._on_recall is not None:
                    made = self._on_recall(push)
                    if inspect.isawaitable(made):
                        await made

    async def _changed(self, kind: Any, **fields: Any) -> SealInfo:
        self._file.refuse_child()
        info = (await self._client.call(kind, seal=self.id, **fields)).seal
        self._file.seal = info
        return info

    async def validate(self) -> MappingReport:
        """Have the mapping proven. Raises Refusal mapping-invalid."""
        self._file.refuse_child()
        report = (await self._client.call(Mapped, seal=self.id)).result
        assert isinstance(report, MappingReport)
        return report

    async def renew(self, ttl: float | None = None) -> SealInfo:
        """`ttl` in seconds (None: the seal's own)."""
        return await self._changed(Renew, ttl=ttl)

    async def progress(self) -> SealInfo:
        """The recall is being seen to, and takes longer: the grace begins anew."""
        return await self._changed(RecallProgress)

    async def downgrade(self) -> SealInfo:
        """Only read from now on. Raises Refusal still-mapped while the range is mapped writably."""
        return await self._changed(Downgrade)

    async def close(self) -> None:
        """As Held.close."""
        if self._given_back or os.getpid() != self._file.owner:
            return
        self._file.close()
        try:
            await self._client.call(Return, seal=self.id)
        except Refusal as refusal:
            if refusal.code != "no-such-seal":
                raise
        self._given_back = True
        await self._client.close()
        if asyncio.current_task() is not self._listener:
            await self._listener

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
