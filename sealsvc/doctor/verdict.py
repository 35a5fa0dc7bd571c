"""What was seen of one operation -> the result that stands in the table. Pure."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """waits: stopped until the seal was returned, and only then the map changed. refused: it got
    an errno, or the grant did. passed-harmless: it went through and the map stayed.
    not-covered: the map changed while the seal was held. not-applicable: this kernel or file
    system does not do it to an unsealed file either."""

    WAITS = "waits"
    REFUSED = "refused"
    PASSED = "passed-harmless"
    NOT_COVERED = "not-covered"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True)
class Seen:
    """`ended` while the seal was held; `recalled` before that; `changed`: the sealed map, while
    the seal was held. `went_on`: it ended after the return (meaningful only if it waited)."""

    ended: bool
    recalled: bool
    changed: bool
    went_on: bool = False
    failed: bool = False
    errno: int | None = None
    detail: str = ""


def name_of(code: int | None) -> str | None:
    """The name a man page would use; Python knows number 95 by two."""
    if code is None:
        return None
    return "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, str(code))


def judge(seen: Seen) -> tuple[Result, str]:
    """The result and a note. A change outweighs all else: an operation that got an errno after it
    moved a block is not covered."""
    if seen.changed:
        how = "the seal was recalled, but the operation did not wait" if seen.recalled else ""
        return Result.NOT_COVERED, how or seen.detail
    if not seen.ended:
        return Result.WAITS, _waited(seen)
    if seen.failed:
        return Result.REFUSED, seen.detail
    if seen.recalled:
        return Result.PASSED, "the seal was recalled, but the operation did not wait"
    return Result.PASSED, ""


def _waited(seen: Seen) -> str:
    notes = []
    if not seen.recalled:
        notes.append("no recall was sent")
    if not seen.went_on:
        why = f": {seen.detail}" if seen.detail else ""
        notes.append(f"it did not go on after the return{why}")
    elif seen.failed:
        notes.append(f"after the return it got {name_of(seen.errno) or seen.detail}")
    return "; ".join(notes)
