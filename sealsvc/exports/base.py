"""The interface of a type of export.

A driver's object is one export. `create` runs in the export's own process and serves until that
process is told to stop. There are two sorts:

* `Served`: a program of ours or somebody else's answers each request. It holds the seal itself, by
  the target core (native/exports/core), which also has its `recall` and `resume`: a recall closes
  the gate, returns the seal, and seals again when the conflict is over.
* `Mapped`: the kernel is given the sealed map, and no process is in the way of a request. `create`,
  `recall` and `resume` are called by sealsvc/exports/holder.py, which holds the seal.

`delete` and `status` are called from any process, also for an export whose process is dead.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from sealsvc.client import socket_path
from sealsvc.core.model import Fence, Kind, Preparation
from sealsvc.exports.runtime import Record, Runtime
from sealsvc.protocol.exports import NAME_PATTERN

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
PREPARE = (Preparation.ALLOCATE, Preparation.CONVERT)
Map = list[tuple[int, int, int]]  # (logical, physical, length) in bytes, in order, without holes


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an export is asked to be. `grace` is the time in seconds that a recall leaves it,
    `patience` how long its requests wait at most during a pause before they fail (0: for ever),
    `initiator_timeout` the smallest time-out of whoever sends requests to it (0: the type's own).
    `io` is auto, mapped or direct, `discard` refuse or recall. With `restart` the export's process
    is started again when it dies. `options` are the type's own."""

    name: Name
    type: str
    file: str
    kind: Kind = Kind.EXCLUSIVE
    fence: Fence = Fence.KILL
    prepare: list[Preparation] = msgspec.field(default_factory=lambda: [*PREPARE])
    grace: Annotated[float, Meta(gt=0)] = 10.0
    patience: Annotated[float, Meta(ge=0)] = 0.0
    initiator_timeout: Annotated[float, Meta(ge=0)] = 0.0
    read_only: bool = False
    io: str = "auto"
    discard: str = "refuse"
    restart: bool = False
    socket: str = msgspec.field(default_factory=socket_path)
    options: dict[str, str] = {}


class Driver(ABC):
    """`options` names what a Spec's `options` may have, each with a line of help. The smallest
    time-out of those that usually send requests to this type is `initiator_timeout` seconds, and
    `initiator` says whose it is."""

    type: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[dict[str, str]] = {}
    initiator_timeout: ClassVar[float] = 30.0
    initiator: ClassVar[str] = "SCSI commands (30 s)"

    def __init__(self, spec: Spec, runtime: Runtime) -> None:
        self.spec, self.runtime = spec, runtime

    @classmethod
    def missing(cls) -> str:
        """What keeps this type from being had on this machine; "" when nothing does."""
        return ""

    @abstractmethod
    def check(self) -> None:
        """Refusal for a Spec that cannot be served, before anything is made."""

    @abstractmethod
    def ready(self, record: Record) -> str:
        """Where the device is (a node, an URI) once it can be used; "" until then."""

    @abstractmethod
    def delete(self, record: Record) -> None:
        """Remove what the export's process, which has ended, left in the kernel or the file
        system. Nothing to remove is no error."""

    def status(self, record: Record) -> dict[str, Any]:
        """What the type knows beside what every export counts."""
        return dict(record.left)

    def in_use(self, record: Record) -> str:  # noqa: ARG002
        """Who has the device open, so that it cannot be stopped without failing their requests; ""
        where nobody has, or that cannot be known."""
        return ""


class Served(Driver):
    """Requests are answered by a program."""

    @abstractmethod
    def program(self, recover: bool) -> tuple[list[str], dict[str, str]]:
        """The command that serves until SIGTERM, in the foreground, as the export's process, and
        what its environment has beside ours. `recover`: take over what an earlier process of this
        export, which has died, left."""

    def core_environment(self) -> dict[str, str]:
        """The Spec, for programs that give export_options_from_environment() their options."""
        spec = self.spec
        return {
            "SEALSVC_EXPORT_NAME": spec.name,
            "SEALSVC_EXPORT_FILE": spec.file,
            "SEALSVC_EXPORT_KIND": spec.kind.value,
            "SEALSVC_EXPORT_FENCE": spec.fence.value,
            "SEALSVC_EXPORT_PREPARE": msgspec.json.encode(spec.prepare).decode(),
            "SEALSVC_EXPORT_GRACE": repr(spec.grace),
            "SEALSVC_EXPORT_PATIENCE": repr(spec.patience),
            "SEALSVC_EXPORT_READ_ONLY": str(int(spec.read_only)),
            "SEALSVC_EXPORT_IO": spec.io,
            "SEALSVC_EXPORT_DISCARD": spec.discard,
            "SEALSVC_EXPORT_STATS": os.fspath(self.runtime.stats(spec.name)),
            "SEALSVC_SOCKET": spec.socket,
        }


class Standing(Served):
    """With `restart`, another process of the program waits beside the one that serves
    (sealsvc/exports/standby.py)."""

    @abstractmethod
    def listen(self) -> socket.socket:
        """Where clients connect to. OSError or Refusal when it cannot be had."""

    @abstractmethod
    def standing(self) -> tuple[list[str], dict[str, str]]:
        """As program(): serves those who connect to the socket that it is given as sd_listen_fds(3)
        has it, once it has read a byte from the descriptor SEALSVC_EXPORT_START, and ends when
        there is none."""


class Mapped(Driver):
    """The kernel serves requests by a map that it is given."""

    device: str  # the node, once it is created

    @property
    @abstractmethod
    def left(self) -> dict[str, Any]:
        """What delete() needs to know of what was made: Record.left."""

    @abstractmethod
    def remember(self, record: Record) -> None:
        """Before create() with `recover`: what an earlier process left."""

    @abstractmethod
    def create(self, fd: int, map: Map, recover: bool) -> None:
        """Make the device by the map of the sealed file `fd`, and set `device`."""

    @abstractmethod
    def recall(self) -> None:
        """Hold requests; when it returns those under way have ended and what they wrote is on the
        medium (flushed)."""

    @abstractmethod
    def resume(self, map: Map) -> None:
        """Go on by this map."""

    @abstractmethod
    def hold(self) -> None:
        """As recall(), without the flush, and whatever its state: no request reaches the file's
        blocks when it returns."""

    @abstractmethod
    def fence(self) -> None:
        """Every request fails from now on, and none reaches the file's blocks."""
