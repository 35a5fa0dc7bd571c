"""SCSI EXTENDED COPY (LID1) within one logical unit.

Never between two: targets that took a designator's word for it let a guest reach any unit
(CVE-2020-28374, CVE-2021-3139)."""

from __future__ import annotations

import os

from sealsvc.copies.stack import node_of, sysfs_of
from sealsvc.copies.strategies.device import DeviceCopy
from sealsvc.linux.native import ffi, lib


class ExtendedCopy(DeviceCopy):
    name = "xcopy"

    def __init__(self) -> None:
        super().__init__()
        self._limits = ffi.new("struct seal_xcopy_limits *")

    def _wrong(self, device: int) -> str:
        is_scsi = (sysfs_of(device) / "device/scsi_device").is_dir()
        return "" if is_scsi else f"{node_of(device)} is not a SCSI disk"

    def _look(self, device: int) -> str:
        result = lib.seal_xcopy_limits(self._fd, self._limits)
        if result < 0:
            return f"{node_of(device)} has no EXTENDED COPY ({os.strerror(-result)})"
        self.block, self.most_blocks = int(self._limits.block), int(self._limits.blocks)
        return ""

    def _command(self, source: int, destination: int, blocks: int) -> int:
        return int(lib.seal_xcopy(self._fd, self._limits, source, destination, blocks))
