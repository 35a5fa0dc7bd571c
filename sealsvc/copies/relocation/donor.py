"""The file whose blocks take the place of the relocated file's: it has no name, so that nothing is
left of it whatever happens."""

from __future__ import annotations

import os

from sealsvc.copies.relocation import calls
from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.linux import native
from sealsvc.linux.host import ExtentMap, Target
from sealsvc.protocol.relocation import Goal


def make_donor(target: Target, goal: Goal, rows: ExtentMap) -> int:
    """A descriptor of a file that has a block wherever the target, whose map is `rows`, has one.
    None of it is written yet. Raises OSError, and Refusal where the goal cannot be reached."""
    directory = goal.to or os.path.dirname(target.path)
    donor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(donor).st_dev != target.file.device:
            raise Refusal(
                "bad-request",
                f"{directory} is on another file system than {target.path}: blocks move within one",
                {"path": directory},
            )
        owner = os.fstat(target.fd)
        os.fchown(donor, owner.st_uid, owner.st_gid)  # its blocks count against the same quota
        if goal.align is None:
            for span in extents.spans(rows):
                native.allocate(donor, span.offset, span.length)
        else:
            _allocate_aligned(donor, target, goal.align, rows)
        os.ftruncate(donor, target.size)
        return donor
    except BaseException:
        os.close(donor)
        raise


def _allocate_aligned(donor: int, target: Target, align: int, rows: ExtentMap) -> None:
    """One alignment more than is needed; what lies before the first aligned block is taken out."""
    spans = extents.spans(rows)
    if len(spans) != 1 or spans[0].offset:
        raise Refusal(
            "bad-request",
            f"{target.path} has holes: it can be aligned once they are allocated"
            " (sealctl hold --prepare allocate)",
            {"path": target.path},
        )
    native.allocate(donor, 0, spans[0].length + align)
    physical = int(native.read_extents(donor, None)[0, 1])
    os.ftruncate(donor, spans[0].length + align)
    if beyond := -physical % align:
        calls.collapse(donor, beyond)


def improves(goal: Goal, before: ExtentMap, after: ExtentMap) -> str:
    """Why the donor's map is no better than the file's; empty when it is."""
    if goal.align is not None:
        if not aligned(after, goal.align):
            return f"the file system has no free extent aligned to {goal.align} bytes"
        if aligned(before, goal.align):
            return f"every extent is aligned to {goal.align} bytes already"
    if goal.defrag and len(runs(after)) >= len(runs(before)):
        return (
            f"it has {len(runs(before))} extents, and the file system would give it"
            f" {len(runs(after))}"
        )
    return ""


def aligned(rows: ExtentMap, align: int) -> bool:
    return all((physical - logical) % align == 0 for logical, physical, _ in runs(rows))


def runs(rows: ExtentMap) -> list[tuple[int, int, int]]:
    """Logical and physical start and length of what is contiguous in both."""
    found: list[tuple[int, int, int]] = []
    for logical, physical, length, _ in rows.tolist():
        if found:
            start, place, have = found[-1]
            if (start + have, place + have) == (logical, physical):
                found[-1] = (start, place, have + length)
                continue
        found.append((logical, physical, length))
    return found
