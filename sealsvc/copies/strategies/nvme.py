"""NVMe Copy by passthrough: the controller copies within one namespace."""

from __future__ import annotations

import os

from sealsvc.copies.stack import name_of, node_of
from sealsvc.copies.strategies.device import DeviceCopy
from sealsvc.linux.native import ffi, lib


class NvmeCopy(DeviceCopy):
    name = "nvme"

    def __init__(self) -> None:
        super().__init__()
        self._limits = ffi.new("struct seal_nvme_limits *")

    def _wrong(self, device: int) -> str:
        is_nvme = name_of(device).startswith("nvme")
        return "" if is_nvme else f"{node_of(device)} is not an NVMe namespace"

    def _look(self, device: int) -> str:
        limits = self._limits
        result = lib.seal_nvme_limits(self._fd, limits)
        if result < 0:
            return f"Identify of {node_of(device)} failed: {os.strerror(-result)}"
        if not limits.copies:
            return f"the controller of {node_of(device)} has no Copy, or its blocks have metadata"
        self.block = int(limits.block)
        # MSRC ranges of MSSRL blocks each, and MCL blocks together.
        self.most_blocks = min(limits.ranges * limits.range_blocks, limits.total_blocks)
        return "" if self.most_blocks else f"{node_of(device)} sets no copy limits (MSSRL, MCL)"

    def _command(self, source: int, destination: int, blocks: int) -> int:
        namespace_id = self._limits.namespace_id
        return int(
            lib.seal_nvme_copy(self._fd, namespace_id, source, destination, self._limits, blocks)
        )
