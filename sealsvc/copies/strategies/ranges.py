"""copy_file_range(2): the file system's own copy, by whatever way it knows."""

from __future__ import annotations

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.strategies.interface import ByDescriptors

_SHARES = {"btrfs", "bcachefs", "ocfs2", "zfs"}


class Ranges(ByDescriptors):
    name = "range"

    def refusal(self, ends: Ends) -> str:
        source, destination = ends.source, ends.destination
        if source.filesystem.type != destination.filesystem.type:
            return (
                "copy_file_range(2) stays within one type of file system (EXDEV since Linux 5.19)"
            )
        shares = source.filesystem.reflink or source.filesystem.type in _SHARES
        if shares and (source.keeps_map or destination.keeps_map):
            return "a file is sealed, and this file system would share blocks"
        return ""

    def copy(self, ends: Ends, span: Span) -> Copied:
        return calls.copy_file_range(ends.source.fd, ends.destination.fd, span)
