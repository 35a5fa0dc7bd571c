"""libseal for Python: `RingClient` blocks, and tells what happens from `dispatch()`.

It has no thread of its own. In an event loop, poll `fileno()` for reading and call `dispatch()`;
`AsyncRingClient` does that in asyncio. One thread at a time uses a client: a call beside another
thread's raises RuntimeError. `Seal.valid` and `Seal.state` may be asked by any, and cost no system
call. In a child of fork(2) every call fails with EOWNERDEAD. Failures are OSErrors with the errno
that native/libseal/seal.h names.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sealsvc.client.datagrams import alone, socket_path
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import Conflict, Fence, IoMode, Kind, Preparation, State
from sealsvc.core.native_headers import STATES
from sealsvc.linux.native import ffi, lib, rows_of

_STATES = {number: state for state, number in STATES.items()}
_MODES = {IoMode.READ: lib.SEAL_READ, IoMode.RW: lib.SEAL_RW}
_FILE_KINDS = {Kind.SHARED: lib.SEAL_KIND_SHARED, Kind.EXCLUSIVE: lib.SEAL_KIND_EXCLUSIVE}
_CONFLICTS = {Conflict.WAIT: lib.SEAL_CONFLICT_WAIT, Conflict.REFUSE: lib.SEAL_CONFLICT_REFUSE}
_FENCES = {
    Fence.NONE: lib.SEAL_FENCE_NOBODY,
    Fence.SIGNAL: lib.SEAL_FENCE_SIGNAL,
    Fence.KILL: lib.SEAL_FENCE_KILL,
}
_PREPARATIONS = {
    Preparation.ALLOCATE: lib.SEAL_PREPARE_ALLOCATE,
    Preparation.CONVERT: lib.SEAL_PREPARE_CONVERT,
    Preparation.UNSHARE: lib.SEAL_PREPARE_UNSHARE,
    Preparation.ALIGN: lib.SEAL_PREPARE_ALIGN,
}
_KINDS = {
    lib.SEAL_EVENT_RECALL: "recall",
    lib.SEAL_EVENT_DEADLINE: "deadline",
    lib.SEAL_EVENT_LOST: "lost",
    lib.SEAL_EVENT_OVER: "over",
    lib.SEAL_EVENT_LAPSED: "lapsed",
    lib.SEAL_EVENT_FILE: "file",
    lib.SEAL_EVENT_ANY: "recall-any",
}
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class News:
    """What the service tells. `slot` is None when it is about a registered `file` as a whole, or
    about all. `offset` and `length` are what is wanted back (of recall-any: `length` seals),
    `deadline` is in seconds of CLOCK_BOOTTIME."""

    kind: str
    slot: int | None
    file: int
    state: State
    offset: int
    length: int
    deadline: float


def _check(result: int, call: str, why: str = "") -> int:
    if result < 0:
        raise OSError(-result, why or os.strerror(-result), call)
    return result


def _failure(handle: Any) -> str:
    return str(ffi.string(lib.seal_failure(handle)).decode(errors="replace"))


class Seal:
    """A seal on a part of a registered file. Leaving its context returns it."""

    def __init__(self, client: RingClient, handle: Any) -> None:
        self._client, self._handle = client, handle

    @property
    def valid(self) -> bool:
        """Does it stand exactly as we know it? One load of shared memory."""
        return bool(lib.seal_valid(self._handle))

    @property
    def state(self) -> State:
        """The state in the slot, as it is now. One load of shared memory."""
        return _STATES[lib.seal_state_of(self._handle)]

    @property
    def slot(self) -> int:
        """Index of the slot in the ring's seal table."""
        return int(self._handle.number)

    @property
    def offset(self) -> int:
        """Where the sealed range begins, in bytes."""
        return int(self._handle.offset)

    @property
    def length(self) -> int:
        """Length of the sealed range in bytes."""
        return int(self._handle.length)

    def give_back(self) -> None:
        """Return the seal. Raises OSError: EBUSY when it was recalled and something of it is still
        mapped, ESTALE when the service changed it meanwhile, ENOENT when it is over."""
        self._call(lib.seal_return)

    def give_back_part(self, offset: int, length: int) -> None:
        """Return `length` bytes at `offset`, a part at one end of the range; the seal stays for the
        rest. Raises OSError as give_back()."""
        self._call(lib.seal_return_part, offset, length)

    def mapped(self, address: int | None = None) -> None:
        """Have the mapping proven, whereupon the seal is active; it begins at `address` (None:
        wherever). Raises OSError."""
        self._call(lib.seal_mapped, ffi.cast("void *", address or 0))

    def renew(self, ttl: float) -> None:
        """The seal expires `ttl` seconds from now (0: never). Raises OSError."""
        self._call(lib.seal_renew, int(ttl * _NANO))

    def downgrade(self) -> None:
        """Change iomode rw to read. Raises OSError: EBUSY while the range is mapped writably."""
        self._call(lib.seal_downgrade)

    def progress(self) -> None:
        """Report progress with a recall: its grace begins anew, within the service's limit. Raises
        OSError."""
        self._call(lib.seal_progress)

    def refresh(self) -> None:
        """Take over what the service changed. Raises OSError: ENOENT when the seal is over."""
        self._call(lib.seal_refresh)

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        _check(self._client.alone(function, self._handle, *arguments), "a seal's command")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while True:
            try:
                self.refresh()
                self.give_back()
            except FileNotFoundError:
                return  # it is over
            except OSError as failure:
                if failure.errno != errno.ESTALE:  # it was recalled in between
                    raise
            else:
                return


class RingClient:
    """A ring of this process. `ring` and `secret`, from `identity`, attach to one that is there.
    `timeout` is in seconds; `slots`, `commands` and `events` are numbers of entries (0: the
    default). Raises OSError when no ring can be had."""

    def __init__(
        self,
        path: str | None = None,
        *,
        slots: int = 0,
        timeout: float = 30.0,
        spin: int = 0,
        ring: int = 0,
        secret: str = "",
        commands: int = 0,
        events: int = 0,
    ) -> None:
        self._news: list[News] = []
        self._used = threading.Lock()
        self._context = ffi.new_handle(self)
        socket = ffi.new("char[]", os.fsencode(path or socket_path()))
        options = ffi.new(
            "struct seal_options *",
            {
                "size": ffi.sizeof("struct seal_options"),
                "socket": socket,
                "slots": slots,
                "commands": commands,
                "events": events,
                "timeout": int(timeout * _NANO),
                "spin": spin,
                "news": lib.seal_python_news,
                "context": self._context,
                "ring": ring,
                "secret": secret.encode(),
            },
        )
        out = ffi.new("struct seal_client **")
        result = lib.seal_open(out, options)
        _check(result, "seal_open", _failure(ffi.NULL) if result < 0 else "")
        self._handle: Any = out[0]

    @property
    def handle(self) -> Any:
        """The `struct seal_client *` of libseal. Raises ValueError when the client is closed."""
        if self._handle is None:
            raise ValueError("the client is closed")
        return self._handle

    @property
    def failure(self) -> str:
        """The text of the last failure that the service gave a reason for."""
        return _failure(self.handle)

    def alone(self, function: Callable[..., int], *arguments: Any) -> int:
        """Call a function of libseal on this client, which no other thread uses meanwhile."""
        with alone(self._used):
            return function(self.handle, *arguments)

    @property
    def identity(self) -> tuple[int, str]:
        """The ring and its secret."""
        ring, secret = ffi.new("uint32_t *"), ffi.new("char[17]")
        _check(lib.seal_identity(self.handle, ring, secret), "seal_identity")
        return int(ring[0]), ffi.string(secret).decode()

    def register(
        self,
        fd: int,
        *,
        offset: int = 0,
        length: int = 0,
        iomode: IoMode = IoMode.RW,
        grace: float = 10.0,
        kind: Kind | str = Kind.SHARED,
        conflict: Conflict | str = Conflict.WAIT,
        fence: Fence | str = Fence.NONE,
        tag: str = "",
        prepare: Sequence[Preparation | str] = (),
    ) -> int:
        """Register the range of a file (`length` 0: to its end), in bytes, and return the file's
        index. `fd` stays the caller's. `grace` is in seconds. `prepare` is what may be done to the
        file first. Raises ValueError for a word that there is not, and OSError."""
        shown = ffi.new("char[]", tag.encode())
        options = ffi.new(
            "struct seal_file_options *",
            {
                "size": ffi.sizeof("struct seal_file_options"),
                "offset": offset,
                "length": length,
                "iomode": _MODES[iomode],
                "grace": max(1, int(grace * _NANO)),
                "kind": _FILE_KINDS[Kind(kind)],
                "conflict": _CONFLICTS[Conflict(conflict)],
                "fence": _FENCES[Fence(fence)],
                "prepare": sum(_PREPARATIONS[step] for step in {Preparation(of) for of in prepare}),
                "tag": shown,
            },
        )
        return self._told(self.alone(lib.seal_register, fd, options), "seal_register")

    def unregister(self, file: int) -> None:
        """End the registration of `file`: every seal in it is returned with it. Raises OSError:
        EBUSY while something of the range is mapped."""
        self._told(self.alone(lib.seal_unregister, file), "seal_unregister")

    def _told(self, result: int, call: str) -> int:
        return _check(result, call, self.failure)

    def grant(self, file: int, offset: int, length: int, iomode: IoMode = IoMode.RW) -> Seal:
        """Grant a seal on `length` bytes at `offset` of a registered file, without the service
        where the map is known. Raises OSError."""
        handle = ffi.new("struct seal *")
        result = self.alone(lib.seal_grant, file, offset, length, _MODES[iomode], handle)
        _check(result, "seal_grant")
        return Seal(self, handle)

    def extents(self, file: int, offset: int, length: int, room: int = 4096) -> ExtentMap:
        """The map of the range, in bytes: rows of sealsvc.core.extents, at most `room`. Raises
        BlockingIOError when the map is not known just now, OSError."""
        out = ffi.new("struct seal_map_extent[]", room)
        count = self.alone(lib.seal_extents, file, offset, length, out, room)
        return rows_of(out, _check(count, "seal_extents"))

    def copy(self, file: int, offset: int, to: int, to_offset: int, length: int) -> int:
        """Copy from one registered range to another, in bytes. Returns how many from `offset` on
        are copied and on the device: fewer where the source ends, or after 20 s. Raises OSError."""
        copied = self.alone(lib.seal_copy_bytes, file, offset, to, to_offset, length)
        return _check(copied, "seal_copy_bytes")

    def fileno(self) -> int:
        """The descriptor to poll for reading before dispatch()."""
        return int(lib.seal_fd(self.handle))

    def dispatch(self) -> list[News]:
        """What was told since. Raises BrokenPipeError when the ring is gone."""
        result = self.alone(lib.seal_dispatch)
        news, self._news = self._news, []
        if result < 0 and not news:
            _check(result, "seal_dispatch")
        return news

    @property
    def missed(self) -> bool:
        """Whether news were dropped since this was last asked: then look at every seal."""
        return bool(lib.seal_missed(self.handle))

    @property
    def connected(self) -> bool:
        """Whether the service is there. Without it, native commands go on."""
        return bool(lib.seal_is_connected(self.handle))

    def reconnect(self) -> None:
        """Connect to the service again, after a restart of it. Raises OSError."""
        self._told(self.alone(lib.seal_reconnect), "seal_reconnect")

    def close(self) -> None:
        """Leave the ring. Idempotent."""
        if self._handle is not None:
            lib.seal_close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def told(self, news: News) -> None:
        """Called by libseal's dispatch with each news."""
        self._news.append(news)


class AsyncRingClient(RingClient):
    """The same in an event loop: commands take microseconds, and block for them."""

    async def pushes(self) -> AsyncIterator[News]:
        """News, as they come, until the ring is gone. Raises OSError."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.fileno(), ready.set)
        try:
            while True:
                ready.clear()
                for news in self.dispatch():
                    yield news
                await ready.wait()
        except BrokenPipeError:
            return
        finally:
            loop.remove_reader(self.fileno())


@ffi.def_extern()  # type: ignore[untyped-decorator]
def seal_python_news(_client: Any, raw: Any, context: Any) -> None:
    """The callback that libseal calls with a `struct seal_news`."""
    client: RingClient = ffi.from_handle(context)
    client.told(
        News(
            kind=_KINDS.get(raw.kind, "unknown"),
            slot=None if raw.number == 2**32 - 1 else int(raw.number),
            file=int(raw.file),
            state=_STATES.get(raw.state, State.REQUESTED),
            offset=int(raw.offset),
            length=int(raw.length),
            deadline=raw.deadline / _NANO,
        )
    )
