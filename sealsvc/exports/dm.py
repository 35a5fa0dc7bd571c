"""dm-linear over the sealed map: the static map, at the speed of the disk."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import Any, ClassVar

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Kind
from sealsvc.exports import loop_device
from sealsvc.exports.base import Map, Mapped, Spec
from sealsvc.exports.blocks import Piece, name_of, number_of, pieces
from sealsvc.exports.dm_ioctl import CONTROL, SECTOR, DeviceMapper, Target
from sealsvc.exports.protect import below
from sealsvc.exports.runtime import Record, Runtime


class Dm(Mapped):
    type: ClassVar[str] = "dm"
    summary: ClassVar[str] = "device-mapper device on the file's own blocks: no process in the way"
    initiator_timeout: ClassVar[float] = 30.0
    initiator: ClassVar[str] = (
        "SCSI or NVMe initiators above it (30 s); a local file system has none"
    )

    def __init__(self, spec: Spec, runtime: Runtime) -> None:
        super().__init__(spec, runtime)
        self.name = f"sealsvc-{spec.name}"
        self.loops: dict[str, str] = {}  # MAJOR:MINOR of a block device -> loop device on it
        self._under = 0
        self._size = 0

    @classmethod
    def missing(cls) -> str:
        if os.geteuid():
            return "device-mapper takes root"
        if not os.path.exists(CONTROL):
            return f"the kernel has no device-mapper ({CONTROL} is not there: modprobe dm-mod)"
        return ""

    def check(self) -> None:
        if self.spec.kind is not Kind.EXCLUSIVE:
            raise Refusal(
                "bad-request",
                "a dm export needs an exclusive seal: what others have of the file in the page"
                " cache is not what the device reads and writes",
            )
        if self.spec.io != "auto" or self.spec.discard != "refuse" or self.spec.patience:
            raise Refusal(
                "bad-request",
                "--io, --discard and --patience mean nothing to a dm export: the kernel serves it",
            )

    @property
    def left(self) -> dict[str, Any]:
        return {"loops": self.loops}

    def remember(self, record: Record) -> None:
        self.loops = dict(record.left.get("loops", {}))

    def ready(self, record: Record) -> str:
        return record.device

    # In the export's own process

    def create(self, fd: int, map: Map, recover: bool) -> None:
        status = os.fstat(fd)
        self._under, self._size = status.st_dev, status.st_size // SECTOR * SECTOR
        with closing(DeviceMapper()) as mapper:
            device = mapper.find(self.name)
            if device is None:
                device = mapper.create(self.name, f"SEALSVC-{self.spec.name}")
            elif not recover:
                raise Refusal(
                    "export-failed", f"there is a device-mapper device {self.name} already"
                )
            if device.number in below(self._under):
                raise Refusal(
                    "export-failed",
                    f"{self.spec.file} lies on {device.node}, which is its own export",
                )
            self.device = device.node
            self._load(mapper, map)
            mapper.resume(self.name)

    def recall(self) -> None:
        with closing(DeviceMapper()) as mapper:
            mapper.suspend(self.name)

    def resume(self, map: Map) -> None:
        with closing(DeviceMapper()) as mapper:
            self._load(mapper, map)
            mapper.resume(self.name)

    def hold(self) -> None:
        with closing(DeviceMapper()) as mapper:
            mapper.suspend(self.name, flush=False)

    def fence(self) -> None:
        with closing(DeviceMapper()) as mapper:
            self._fence(mapper)

    def _fence(self, mapper: DeviceMapper) -> None:
        length = sum(target.length for target in mapper.table_of(self.name))
        mapper.suspend(self.name, flush=False)
        if length:
            mapper.load(self.name, [Target(0, length, "error", "")])
            mapper.resume(self.name)

    def _load(self, mapper: DeviceMapper, map: Map) -> None:
        """Straight on the block devices where nobody has claimed them: a file system claims what it
        is mounted from (bdev_open with a holder), but not what lies beneath that."""
        found = pieces(map, self._under, self._size)
        try:
            mapper.load(self.name, self._table(found), read_only=self.spec.read_only)
        except OSError as error:
            if error.errno != errno.EBUSY or self.loops:
                raise
            for device in sorted({piece.device for piece in found}):
                self.loops[device] = loop_device.attach_apart(
                    _node(device), read_only=self.spec.read_only
                )
            mapper.load(self.name, self._table(found), read_only=self.spec.read_only)

    def _table(self, found: list[Piece]) -> list[Target]:
        return [
            Target(
                piece.logical // SECTOR,
                piece.length // SECTOR,
                "linear",
                f"{self.loops.get(piece.device, piece.device)} {piece.physical // SECTOR}",
            )
            for piece in found
        ]

    # From any process

    def delete(self, record: Record) -> None:
        self.remember(record)
        with closing(DeviceMapper()) as mapper:
            try:
                mapper.remove(self.name)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                # In use: its requests fail, and it goes with the last who has it open.
                self._fence(mapper)
                mapper.remove(self.name, deferred=True)
        for backing, node in self.loops.items():
            loop_device.detach(node, backing)

    def in_use(self, record: Record) -> str:  # noqa: ARG002
        with closing(DeviceMapper()) as mapper:
            device = mapper.find(self.name)
        if device is None or not device.open_count:
            return ""
        return f"{device.node} is open {device.open_count} times, or mounted"

    def status(self, record: Record) -> dict[str, Any]:
        with closing(DeviceMapper()) as mapper:
            device = mapper.find(self.name)
            if device is None:
                return {}
            table = mapper.table(device.number)
        return {
            "suspended": device.suspended,
            "opened": device.open_count,
            "targets": len(table),
            "fenced": any(target.type == "error" for target in table),
            "loops": dict(record.left.get("loops", {})),
        }


def _node(device: str) -> str:
    number = number_of(device)
    with open(f"/sys/dev/block/{name_of(number)}/uevent") as lines:
        names = dict(line.rstrip("\n").split("=", 1) for line in lines)
    return f"/dev/{names['DEVNAME']}"
