"""What a copy did: exactly which bytes, by which strategy, and how to go on."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import msgspec

from sealsvc.copies.ends import Ends
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange


class Row(msgspec.Struct, frozen=True):
    """Bytes that one strategy copied, neighbours joined."""

    source: int
    destination: int
    length: int
    strategy: str


class Fallback(msgspec.Struct, frozen=True):
    """At this byte of the source a strategy gave up, and another went on."""

    source: int
    strategy: str
    reason: str


class Token(msgspec.Struct, frozen=True):
    """What must still hold when the copy is resumed. `done` are ranges of the source."""

    pair: str
    source: tuple[int, int]  # inode, generation
    destination: tuple[int, int]
    size: int
    changed_ns: int
    map_hash: str
    shift: int  # destination offset minus source offset
    done: tuple[ByteRange, ...]
    flushed: bool
    boot: str

    def text(self) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()

    def ranges(self, ends: Ends, shift: int) -> tuple[ByteRange, ...]:
        """What need not be copied again. Raises Refusal `bad-request` when the files are others,
        or the source has changed."""
        now = token_of(ends, shift, self.done, flushed=self.flushed)
        same = msgspec.structs.replace(now, boot=self.boot)
        if same != self:
            wrong = [n for n in self.__struct_fields__ if getattr(self, n) != getattr(same, n)]
            raise Refusal(
                "bad-request",
                f"the copy cannot be resumed: {', '.join(wrong)} changed since; copy it anew",
                {"changed": wrong},
            )
        return self.done if self.flushed or now.boot == self.boot else ()


def token_of(ends: Ends, shift: int, done: tuple[ByteRange, ...], *, flushed: bool) -> Token:
    source, there = ends.source, ends.destination
    return Token(
        pair=ends.pair,
        source=(source.file.inode, source.file.generation),
        destination=(there.file.inode, there.file.generation),
        size=0 if ends.same_file else source.size,
        changed_ns=0 if ends.same_file else source.changed_ns,
        map_hash="" if ends.same_file else source.map_hash,
        shift=shift,
        done=done,
        flushed=flushed,
        boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    )


def parse_token(text: str) -> Token:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text), type=Token)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise Refusal("bad-request", "that is no token of a copy") from None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`done` of `requested` bytes are copied, in the ranges of `rows` (and those of the resumed
    copy). `durable`: they were flushed. `errno` 0 and `error` empty: nothing failed.
    `source_changed`: the copy is of no single state of the source. `grown`: the destination was
    extended, or cut, to this size."""

    requested: int
    done: int
    rows: list[Row]
    fell_back: list[Fallback]
    durable: bool
    source_changed: bool
    cancelled: bool
    seconds: float
    token: str
    error: str = ""
    errno: int = 0
    error_at: int | None = None
    verified: bool = False

    @property
    def whole(self) -> bool:
        """Every byte that was asked for is copied, and nothing failed."""
        return self.done == self.requested and not self.error and not self.cancelled

    @property
    def bytes_by_strategy(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.strategy] = counts.get(row.strategy, 0) + row.length
        return counts
