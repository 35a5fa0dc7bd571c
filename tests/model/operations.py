"""Operations of the model: what one is, how it is written to a log, and how a seed makes them.

An operation is a tuple of its kind and arguments, so that a log is one JSON array a line. It is
complete in itself: a list with some left out can still be run, which is what shrinking does.
Offsets and lengths are in bytes, files are numbers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

BLOCK = 4096
FILES = 6
MOST = 256 * 1024  # bytes of a file
LONGEST = 48 * 1024  # bytes of one operation
SEALS = 3  # of one file

Operation = tuple[object, ...]

# kind -> weight. Those of KERNEL are done by the actor; the rest by the runner.
KERNEL = {
    "read": 14, "mapped-read": 5, "write": 16, "append": 3, "mapped-write": 8, "direct-write": 4,
    "truncate": 4, "punch": 4, "zero": 4, "allocate": 4, "collapse": 2, "insert": 2, "fsync": 1,
    "copy-range": 4, "open": 2, "close": 2,
}  # fmt: skip
REFLINK = {"clone": 4, "dedupe": 3, "unshare": 1, "exchange": 2}
SEALED = {"seal": 0.8, "return": 0.5, "recall": 0.15, "store": 1.5, "check": 0.5}
SERVICE = {"crash": 0.02, "relocate": 0.06, "copy": 0.04}
WHILE_DOWN = 40  # operations between a crash and the next start


def write_log(path: Path, head: dict[str, object], operations: Iterable[Operation]) -> None:
    lines = [json.dumps(head), *(json.dumps(operation) for operation in operations)]
    path.write_text("\n".join(lines) + "\n")


def read_log(path: Path) -> tuple[dict[str, object], list[Operation]]:
    head, *lines = path.read_text().splitlines()
    return json.loads(head), [tuple(json.loads(line)) for line in lines]


class Generator:
    """The operations of a seed."""

    def __init__(self, seed: str, reflink: bool) -> None:
        self.chance = random.Random(seed)
        weights = KERNEL | SEALED | SERVICE | (REFLINK if reflink else {})
        self.kinds, self.weights = list(weights), list(weights.values())
        self.down = 0

    def next(self) -> Operation:
        if self.down:
            self.down -= 1
            if not self.down:
                return ("start",)
        kind = self.chance.choices(self.kinds, self.weights)[0]
        if kind == "crash":
            if self.down:
                return ("check",)
            self.down = WHILE_DOWN
        return (kind, *self._arguments(kind))

    def _arguments(self, kind: str) -> tuple[object, ...]:
        chance = self.chance
        file = chance.randrange(FILES)
        match kind:
            case "crash" | "check":
                return ()
            case "open" | "close" | "fsync":
                return (file,)
            case "read" | "mapped-read" | "punch" | "zero" | "allocate":
                return (file, *self._range(aligned=chance.random() < 0.4))
            case "write" | "mapped-write" | "append":
                return (file, *self._range(aligned=False), chance.getrandbits(20))
            case "direct-write":
                return (file, *self._range(aligned=True), chance.getrandbits(20))
            case "truncate":
                size = chance.randrange(MOST)
                return (file, size if chance.random() < 0.6 else size // BLOCK * BLOCK)
            case "collapse" | "insert" | "unshare":
                return (file, *self._range(aligned=True))
            case "clone" | "dedupe" | "exchange" | "copy-range" | "copy":
                aligned = kind not in ("copy-range", "copy") or chance.random() < 0.5
                source = chance.randrange(FILES)
                offset, length = self._range(aligned)
                other = self._range(aligned)[0]
                if kind == "dedupe" and chance.random() < 0.5:
                    other = offset  # where a clone before may have left the same bytes
                return (file, offset, length, source, other)
            case "seal":
                exclusive = chance.random() < 0.3
                offset, length = self._range(aligned=chance.random() < 0.5)
                if chance.random() < 0.2:
                    offset, length = 0, 0  # the whole file
                wait = chance.random() < 0.35
                prepared = chance.random() < 0.8
                return (file, offset, length, exclusive, wait, prepared)
            case "store":
                return (chance.getrandbits(16), chance.getrandbits(16), chance.getrandbits(20))
            case "relocate":
                return (file, chance.choice(["defrag", "align"]))
        return (chance.getrandbits(16),)  # return, recall: which seal

    def _range(self, aligned: bool) -> tuple[int, int]:
        chance = self.chance
        offset = chance.randrange(MOST)
        length = chance.randrange(1, LONGEST if chance.random() < 0.3 else 2 * BLOCK)
        if aligned or chance.random() < 0.1:
            offset = offset // BLOCK * BLOCK
        if aligned:
            length = -(-length // BLOCK) * BLOCK
        return offset, min(length, MOST - offset)
