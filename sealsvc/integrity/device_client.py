"""The holder's side of a PI channel in Python: seal_pi_writev and seal_pi_readv of libseal."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from _sealsvc_pi_device import ffi, lib

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.integrity.failures import CHECKERS, FIELDS, failure
from sealsvc.linux import native
from sealsvc.protocol.pi_device import PiChannel, PiChannelInfo, PiFailure

_FIELDS = {name: number for number, name in FIELDS.items()}
_CHECKERS = {name: number for number, name in CHECKERS.items()}
ALL = tuple(_FIELDS)

# Where the C library's text speaks of something else.
_TEXTS = {
    errno.EILSEQ: "protection information does not match",
    errno.ESTALE: "the seal is being recalled, has changed, or is over",
    errno.EBUSY: "the range is mapped, or was read through the page cache meanwhile",
    errno.ERANGE: "outside of the sealed range",
    errno.EBADF: "the seal is read-only",
}


class Place(Enum):
    """Where the PI of a request is: in a buffer of its own, or in the first or last of `data`."""

    APART = lib.SEAL_PI_APART
    FIRST = lib.SEAL_PI_FIRST
    LAST = lib.SEAL_PI_LAST


class PiIOError(OSError):
    """A request that was answered with an error; `failure` says what was wrong, and where."""

    def __init__(self, code: int, found: PiFailure) -> None:
        where = f"interval at {found.offset}" if found.located else f"request at {found.offset}"
        what = (
            f": {found.field} is {found.found:#x}, expected {found.expected:#x} ({found.checker})"
            if found.field
            else ""
        )
        text = _TEXTS.get(code) or os.strerror(code)
        super().__init__(code, f"{text}: {where}{what}")
        self.failure = found


@dataclass(frozen=True, slots=True)
class PiTerms:
    """What a request says of its PI. Fields are named tag, checksum and reftag; those of a write
    that are not `provided` are generated. `verify` are compared by each of `checkers` (service,
    device). `tag` is generated, and expected; `reftag` is that of the first interval, and by
    default its number in the file. `dsync`: a write returns once it is on stable media."""

    provided: Sequence[str] = ()
    verify: Sequence[str] = ("checksum", "reftag")
    checkers: Sequence[str] = ("device",)
    tag: int = 0
    reftag: int | None = None
    dsync: bool = False
    place: Place = Place.APART
    cookie: int = 0


_DEFAULT = PiTerms()


class PiFile:
    """A channel to the blocks of an exclusive seal that this process holds. Its calls release the
    GIL; one thread at a time may use it. `interval` bytes of data have a tuple of `metadata`
    bytes."""

    def __init__(self, info: PiChannelInfo, fds: tuple[int, int]) -> None:
        """Takes the descriptors over."""
        self.info, device = info, info.device
        self.interval, self.metadata = device.interval, device.metadata
        facts = ffi.new("struct seal_pi_facts *")
        for name in ("interval", "metadata", "pi_offset", "pi_size", "ref_size", "block"):
            setattr(facts, name, getattr(device, name))
        out = ffi.new("struct seal_pi **")
        result = lib.seal_pi_attach(*fds, facts, out)
        if result < 0:
            raise OSError(-result, os.strerror(-result), "seal_pi_attach")
        self._pi = out[0]

    @classmethod
    def open(
        cls, client: Client, seal: str, *, bytes: int = 1 << 20, profile: str | None = None
    ) -> Self:
        """Raises Refusal: device-path-unavailable with the reason, try-later, denied."""
        reply = client.call(PiChannel, seal=seal, bytes=bytes, profile=profile)
        assert isinstance(reply.result, PiChannelInfo)
        sock, memory = reply.fds
        return cls(reply.result, (sock, memory))

    def close(self) -> None:
        if self._pi:
            lib.seal_pi_close(self._pi)
            self._pi = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> memoryview:
        """Data that lies here, from a multiple of 4096 on, is not copied."""
        size = ffi.new("size_t *")
        at = lib.seal_pi_memory(self._pi, size)
        return memoryview(ffi.buffer(at, size[0]))

    def tuples(self, length: int) -> int:
        """Bytes of PI that belong to so many bytes of data."""
        return length // self.interval * self.metadata

    def writev(
        self, offset: int, data: Sequence[Any], pi: Any = None, terms: PiTerms = _DEFAULT
    ) -> int:
        """Write buffers to the file's blocks at `offset` (bytes). `pi` has a tuple for each
        interval; what is not provided is filled in, where it is writable. Raises PiIOError."""
        return self._run(lib.seal_pi_writev, "write", offset, data, pi, terms)

    def readv(
        self, offset: int, data: Sequence[Any], pi: Any = None, terms: PiTerms = _DEFAULT
    ) -> int:
        """Read into buffers; `pi` gets the tuples that were found, also when they are wrong."""
        return self._run(lib.seal_pi_readv, "read", offset, data, pi, terms)

    def _run(
        self, call: Any, name: str, offset: int, data: Sequence[Any], pi: Any, terms: PiTerms
    ) -> int:
        buffers = [ffi.from_buffer(buffer) for buffer in data]
        iov = ffi.new("struct iovec[]", [(b, len(b)) for b in buffers])
        kept = ffi.NULL if pi is None else ffi.from_buffer(pi)
        io = ffi.new(
            "struct seal_pi_io *",
            {
                "size": ffi.sizeof("struct seal_pi_io"),
                "offset": offset,
                "pi": kept,
                "pi_length": 0 if pi is None else len(kept),
                "place": terms.place.value,
                "flags": lib.SEAL_CHANNEL_DSYNC if terms.dsync else 0,
                "provided": _mask(_FIELDS, terms.provided),
                "verify": _mask(_FIELDS, terms.verify),
                "checkers": _mask(_CHECKERS, terms.checkers),
                "tag": terms.tag,
                "has_reftag": terms.reftag is not None,
                "reftag": terms.reftag or 0,
                "cookie": terms.cookie,
            },
        )
        error = ffi.new("struct seal_channel_error *")
        done = self._carry_out(call, iov, len(buffers), io, error)
        if done < 0:
            asked = (offset, sum(len(buffer) for buffer in buffers))
            raise PiIOError(-done, failure(error, name, -done, asked, terms.cookie, self.interval))
        return done

    def _carry_out(self, call: Callable[..., int], *arguments: Any) -> int:
        return call(self._pi, *arguments)


class PiRing(PiFile):
    """The same for an exclusive registration of a ring, whose commands carry the requests. `bytes`
    of shared memory (0: 1 MiB); with `profile`, only where the device keeps that one. It is closed
    before its ring. Raises OSError: EOPNOTSUPP with the reason why there is no device path."""

    def __init__(
        self, ring: RingClient, file: int, *, bytes: int = 0, profile: str | None = None
    ) -> None:
        self._ring = ring
        client = ffi.cast("struct seal_client *", int(native.ffi.cast("uintptr_t", ring.handle)))
        name = ffi.NULL if profile is None else ffi.new("char[]", profile.encode())
        out = ffi.new("struct seal_pi **")
        result = ring.alone(lambda _: lib.seal_pi_open_ring(client, file, bytes, name, out))
        if result < 0:
            raise OSError(-result, ring.failure or os.strerror(-result), "seal_pi_open_ring")
        self._pi = out[0]
        facts = lib.seal_pi_facts(self._pi)
        self.interval, self.metadata = int(facts.interval), int(facts.metadata)

    def _carry_out(self, call: Callable[..., int], *arguments: Any) -> int:
        return self._ring.alone(lambda _: call(self._pi, *arguments))


def _mask(known: dict[str, int], names: Sequence[str]) -> int:
    """Raises KeyError for a name that there is not."""
    mask = 0
    for name in names:
        mask |= known[name]
    return mask
