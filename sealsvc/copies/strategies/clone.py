"""FICLONERANGE: the destination shares the source's blocks."""

from __future__ import annotations

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.strategies.interface import ByDescriptors, aligned

# Known to refuse: asking would cost nothing, but a plan tells before anything is done.
_WITHOUT = {"ext4", "ext3", "ext2", "tmpfs", "ramfs", "fuse", "overlay", "f2fs", "vfat"}


class Clone(ByDescriptors):
    name = "clone"
    instant = True
    holes = True
    most = 1 << 40

    def refusal(self, ends: Ends) -> str:
        kind = ends.source.filesystem
        if not ends.same_filesystem:
            return "the files are on two file systems"
        if kind.type in _WITHOUT or (kind.type == "xfs" and not kind.reflink):
            return f"the file system ({kind.type}) cannot share blocks"
        if ends.source.dax or ends.destination.dax:
            return "DAX files share no blocks"
        if ends.source.keeps_map:
            return f"the source is sealed ({_who(ends.source.seals)}): cloning shares its extents"
        if ends.destination.keeps_map:
            who = _who(ends.destination.seals)
            return f"the destination is sealed ({who}): cloning replaces its map"
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:
        """Whole blocks; the last block of the source may be cut, where it ends the destination too
        (generic_remap_checks, fs/remap_range.c)."""
        block = ends.source.filesystem.block_size
        rest = -span.source_end % block
        at_end = span.source_end == ends.source.size
        if rest and at_end and span.destination_end >= ends.destination.size:
            whole = aligned(Span(span.source, span.destination, span.length + rest), block)
            return whole and Span(whole.source, whole.destination, whole.length - rest)
        return aligned(span, block)

    def copy(self, ends: Ends, span: Span) -> Copied:
        return calls.clone(ends.source.fd, ends.destination.fd, span)


def _who(seals: tuple[str, ...]) -> str:
    return ", ".join(seals[:3]) or "by this copy"
