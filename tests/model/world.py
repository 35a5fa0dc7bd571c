"""The model: what every file contains, which blocks are shared, what is sealed, and what follows.

It is written from docs/rules.md and the manual pages, and imports nothing of the code under test.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.operations import BLOCK, FILES, MOST, SEALS, Operation

_POOL = random.Random(5).randbytes(1 << 20)
UNKNOWN = -1  # of a block: the kernel chose whether to share it

Result = int | bytes


def payload(seed: int, length: int) -> bytes:
    """What an operation writes: the same for the same seed."""
    start = seed % (len(_POOL) - MOST)
    return _POOL[start : start + length]


@dataclass(frozen=True, slots=True, eq=False)
class Seal:
    """A seal that is held. `start` and `end` are those of whole blocks."""

    number: int
    file: int
    start: int
    end: int
    exclusive: bool
    wait: bool


@dataclass(slots=True)
class File:
    """`tokens[n]` names the place of block n: equal tokens are one place, 0 is none."""

    data: bytearray = field(default_factory=bytearray)
    tokens: list[int] = field(default_factory=lambda: [0] * (MOST // BLOCK))
    open: bool = False  # by the actor, from one operation to the next


@dataclass(slots=True)
class Step:
    """What must come of an operation: `result` is a count, bytes, or -errno; first it `waits` until
    these seals are given back. `command` is what the actor is told."""

    command: Operation
    result: Result
    waits: list[Seal] = field(default_factory=list)


class World:
    def __init__(self, reflink: bool) -> None:
        self.reflink = reflink
        self.files = [File() for _ in range(FILES)]
        self.seals: dict[int, Seal] = {}
        self.down = False  # is the service?
        self._tokens = 0
        self._held = 0
        self._refs: Counter[int] = Counter()

    # Seals

    def sealed(self, file: int) -> list[Seal]:
        return [seal for seal in self.seals.values() if seal.file == file]

    def grantable(self, file: int, exclusive: bool) -> bool:
        """Of several seals on a file only shared ones are tried."""
        held = self.sealed(file)
        return not held or (
            not exclusive and len(held) < SEALS and not any(seal.exclusive for seal in held)
        )

    def grant(
        self, file: int, offset: int, length: int, exclusive: bool, wait: bool, prepared: bool
    ) -> Seal:
        start, end = offset // BLOCK * BLOCK, -(-(offset + length) // BLOCK) * BLOCK
        if prepared:
            self._prepare(file, start, end)
        self._held += 1
        seal = Seal(self._held, file, start, end, exclusive, wait)
        self.seals[seal.number] = seal
        return seal

    def _prepare(self, file: int, start: int, end: int) -> None:
        """allocate, unshare (the whole file), convert."""
        tokens = self.files[file].tokens
        for block, token in enumerate(tokens):
            inside = start <= block * BLOCK < end
            shared = token > 0 and self._refs[token] > 1
            if shared or (inside and token <= 0):
                self._place(file, block, self._new())

    def shares(self, file: int) -> bool | None:
        """Does it share blocks with another? None: that is not known."""
        tokens = self.files[file].tokens
        if any(self._refs[token] > 1 for token in tokens if token > 0):
            return True
        return None if any(UNKNOWN in one.tokens for one in self.files) else False

    def copied(self, file: int, offset: int, length: int, source: int, other: int) -> None:
        """By whoever may have shared blocks, or left holes."""
        self.put(file, offset, bytes(self.files[source].data[other : other + length]))
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
            self._place(file, block, UNKNOWN)

    def may_be_unshared(self, file: int) -> None:
        """Any of its shared blocks may have been copied: by a grant that was refused after it had
        unshared the file, or by a store into a large folio, which dirties all of it."""
        for block, token in enumerate(self.files[file].tokens):
            if token > 0 and self._refs[token] > 1:
                self._place(file, block, UNKNOWN)

    def suitable(self, file: int, offset: int, length: int) -> bool | None:
        """May the range be sealed as it is? None: the kernel decides that."""
        tokens = self.files[file].tokens
        inside = tokens[offset // BLOCK : -(-(offset + length) // BLOCK)]
        if self.reflink and any(self._refs[token] > 1 for token in tokens if token > 0):
            return False
        if 0 in inside or any(UNKNOWN in one.tokens for one in self.files):
            return None
        return True

    # Blocks

    def _new(self) -> int:
        self._tokens += 1
        return self._tokens

    def _place(self, file: int, block: int, token: int) -> None:
        tokens = self.files[file].tokens
        self._refs[tokens[block]] -= 1
        tokens[block] = token
        self._refs[token] += 1

    def _written(self, file: int, start: int, end: int) -> None:
        tokens = self.files[file].tokens
        for block in range(start // BLOCK, -(-end // BLOCK)):
            if tokens[block] in (0, UNKNOWN) or self._refs[tokens[block]] > 1:
                self._place(file, block, self._new())

    def _freed(self, file: int, start: int, end: int) -> None:
        for block in range(start // BLOCK, end // BLOCK):
            self._place(file, block, 0)

    # Operations

    def step(self, operation: Operation) -> Step | None:
        """What must come of it, with the model moved on; None when it does not apply now."""
        kind, *numbers = operation
        arguments = [int(str(number)) for number in numbers]
        two = kind in ("clone", "dedupe", "exchange", "copy-range")
        files = {arguments[0], arguments[3]} if two else {arguments[0]}
        met = self._met(str(kind), arguments, sorted(files))
        if two and any(map(self.sealed, files)) and self._invalid(*arguments, kind == "dedupe"):
            return None  # whether the seal or the arguments are looked at first is not promised
        refused = bool(met) and not all(seal.wait for seal in met)
        if two and len({seal.wait for seal in met}) > 1:
            return None  # nor which of two files is asked first
        if self.down and met and not refused:
            return None  # it would wait for the next service
        if refused:
            return Step(operation, -errno.ETXTBSY)
        result = _ACTS[str(kind)](self, *arguments)
        if result is None:
            return None
        return Step(operation, result, met)

    def _met(self, kind: str, arguments: list[int], files: list[int]) -> list[Seal]:
        """The seals that it conflicts with."""
        if kind == "close":
            return []
        met = []
        for file in files:
            for seal in self.sealed(file):
                opens = not self.files[file].open and kind != "truncate"
                if (seal.exclusive and opens) or self._reaches(kind, arguments, seal):
                    met.append(seal)
        return met

    def _reaches(self, kind: str, arguments: list[int], seal: Seal) -> bool:
        match kind:
            case "punch" | "zero":
                _, offset, length = arguments[:3]
                return offset < seal.end and seal.start < offset + length
            case "truncate" | "collapse" | "insert":
                return arguments[1] < seal.end
            case "clone" | "dedupe" | "exchange":
                return True
            case "copy-range" | "unshare":
                return self.reflink
        return False

    def _open(self, file: int) -> Result | None:
        if self.files[file].open:
            return None
        self.files[file].open = True
        return 0

    def _close(self, file: int) -> Result | None:
        if not self.files[file].open:
            return None
        self.files[file].open = False
        return 0

    def _fsync(self, _file: int) -> Result:
        return 0

    def _read(self, file: int, offset: int, length: int) -> Result:
        return bytes(self.files[file].data[offset : offset + length])

    def _mapped_read(self, file: int, offset: int, length: int) -> Result | None:
        return self._read(file, offset, length) or None

    def _write(self, file: int, offset: int, length: int, seed: int) -> Result:
        self.put(file, offset, payload(seed, length))
        return length

    def _direct_write(self, file: int, offset: int, length: int, seed: int) -> Result:
        return self._write(file, offset, length, seed)

    def _append(self, file: int, _offset: int, length: int, seed: int) -> Result | None:
        size = len(self.files[file].data)
        if size + length > MOST:
            return None
        return self._write(file, size, length, seed)

    def _mapped_write(self, file: int, offset: int, length: int, seed: int) -> Result | None:
        length = min(length, len(self.files[file].data) - offset)
        if length <= 0:
            return None
        self.may_be_unshared(file)
        return self._write(file, offset, length, seed)

    def put(self, file: int, offset: int, data: bytes) -> None:
        """Store bytes, as any write does."""
        content = self.files[file].data
        self._extended(file, offset)
        content[offset : offset + len(data)] = data
        self._written(file, offset, offset + len(data))

    def _truncate(self, file: int, size: int) -> Result:
        content = self.files[file].data
        if size < len(content):
            if size % BLOCK:
                self._zeroed_edge(file, size)
            self._freed(file, -(-size // BLOCK) * BLOCK, MOST)
            del content[size:]
        else:
            self._extended(file, size)
        return 0

    def _extended(self, file: int, size: int) -> None:
        """To at least `size` bytes, with zeros. XFS may write them to the old last block."""
        content = self.files[file].data
        old = len(content)
        if size <= old:
            return
        content.extend(bytes(size - old))
        if old % BLOCK and self._refs[self.files[file].tokens[old // BLOCK]] > 1:
            self._place(file, old // BLOCK, UNKNOWN)

    def _zeroed_edge(self, file: int, at: int) -> None:
        """A part of the block at `at` is zeroed: where it has a place, that is written to."""
        if self.files[file].tokens[at // BLOCK] > 0:
            self._written(file, at, at + 1)

    def _zeroes(self, file: int, offset: int, end: int) -> None:
        content = self.files[file].data
        stop = min(end, len(content))
        if offset < stop:
            content[offset:stop] = bytes(stop - offset)
        for edge in (offset, end):
            if edge % BLOCK:
                self._zeroed_edge(file, edge)
        if end >= len(content):  # ext4 frees the last block as well (ext4_punch_hole)
            end = -(-end // BLOCK) * BLOCK
        self._freed(file, -(-offset // BLOCK) * BLOCK, end // BLOCK * BLOCK)

    def _punch(self, file: int, offset: int, length: int) -> Result:
        self._zeroes(file, offset, offset + length)
        return 0

    def _zero(self, file: int, offset: int, length: int) -> Result:
        self._zeroes(file, offset, offset + length)
        return self._allocate(file, offset, length)

    def _allocate(self, file: int, offset: int, length: int) -> Result:
        self._extended(file, offset + length)
        return 0

    def _collapse(self, file: int, offset: int, length: int) -> Result:
        content = self.files[file].data
        if offset + length >= len(content):
            return -errno.EINVAL
        del content[offset : offset + length]
        tokens = list(self.files[file].tokens)
        first, count = offset // BLOCK, length // BLOCK
        self._retake(file, tokens[:first] + tokens[first + count :] + [0] * count)
        return 0

    def _insert(self, file: int, offset: int, length: int) -> Result | None:
        content = self.files[file].data
        if offset >= len(content):
            return -errno.EINVAL
        if len(content) + length > MOST:
            return None
        content[offset:offset] = bytes(length)
        tokens = list(self.files[file].tokens)
        first, count = offset // BLOCK, length // BLOCK
        self._retake(file, (tokens[:first] + [0] * count + tokens[first:])[: len(tokens)])
        return 0

    def _retake(self, file: int, tokens: list[int]) -> None:
        for block, token in enumerate(tokens):
            self._place(file, block, token)

    # Two files

    def _clone(self, file: int, offset: int, length: int, source: int, other: int) -> Result | None:
        if wrong := self._invalid(file, offset, length, source, other):
            return wrong
        data = bytes(self.files[source].data[other : other + length])
        self._extended(file, offset)
        self._share(file, offset, length, source, other)
        self.files[file].data[offset : offset + length] = data
        return 0

    def _dedupe(
        self, file: int, offset: int, length: int, source: int, other: int
    ) -> Result | None:
        if wrong := self._invalid(file, offset, length, source, other, inside=True):
            return wrong
        mine = self.files[file].data[offset : offset + length]
        if mine != self.files[source].data[other : other + length]:
            return -errno.EILSEQ
        self._share(file, offset, length, source, other)
        return 0

    def _invalid(
        self, file: int, offset: int, length: int, source: int, other: int, inside: bool = False
    ) -> int:
        """EINVAL, or 0. `inside`: the destination must not reach beyond its end either."""
        overlaps = file == source and abs(offset - other) < length
        beyond = other + length > len(self.files[source].data)
        beyond |= inside and offset + length > len(self.files[file].data)
        return -errno.EINVAL if overlaps or beyond else 0

    def _share(self, file: int, offset: int, length: int, source: int, other: int) -> None:
        for n in range(length // BLOCK):
            token = self.files[source].tokens[other // BLOCK + n]
            self._place(file, offset // BLOCK + n, token)

    def _exchange(
        self, file: int, offset: int, length: int, source: int, other: int
    ) -> Result | None:
        one, two = self.files[file], self.files[source]
        if file == source or offset + length > len(one.data) or other + length > len(two.data):
            return None
        mine = bytes(one.data[offset : offset + length])
        one.data[offset : offset + length] = two.data[other : other + length]
        two.data[other : other + length] = mine
        for n in range(length // BLOCK):
            here, there = offset // BLOCK + n, other // BLOCK + n
            token = one.tokens[here]
            self._place(file, here, two.tokens[there])
            self._place(source, there, token)
        return 0

    def _copy_range(
        self, file: int, offset: int, length: int, source: int, other: int
    ) -> Result | None:
        length = max(0, min(length, len(self.files[source].data) - other))
        if not length:
            return 0
        if file == source and abs(offset - other) < length:
            return -errno.EINVAL
        self.copied(file, offset, length, source, other)
        return length

    def _unshare(self, file: int, offset: int, length: int) -> Result:
        for block in range(offset // BLOCK, (offset + length) // BLOCK):
            token = self.files[file].tokens[block]
            if token > 0 and self._refs[token] > 1:
                self._place(file, block, self._new())
        return self._allocate(file, offset, length)


_ACTS: dict[str, Callable[..., Result | None]] = {
    "read": World._read,
    "mapped-read": World._mapped_read,
    "write": World._write,
    "append": World._append,
    "mapped-write": World._mapped_write,
    "direct-write": World._direct_write,
    "truncate": World._truncate,
    "punch": World._punch,
    "zero": World._zero,
    "allocate": World._allocate,
    "collapse": World._collapse,
    "insert": World._insert,
    "fsync": World._fsync,
    "copy-range": World._copy_range,
    "open": World._open,
    "close": World._close,
    "clone": World._clone,
    "dedupe": World._dedupe,
    "unshare": World._unshare,
    "exchange": World._exchange,
}
