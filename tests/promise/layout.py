"""What is sealed in an epoch, and how: it follows from the seed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass

from tests.promise.attack import BLOCK, FILE_BYTES, FILES, Target

CORE = 7  # the file that core dumps are written to


@dataclass(frozen=True, slots=True)
class Plan:
    """One file: its sealed range, and the terms of the seal."""

    file: int
    start: int
    length: int
    kind: str  # of the seal: shared or exclusive
    conflict: str
    by: str  # path, descriptor or ring; none: it is not sealed at all

    def __str__(self) -> str:
        return (
            f"f{self.file}: {self.kind}, {self.conflict}, by {self.by}, {self.start}+{self.length}"
        )


# Of each file: kind, conflict, by. The last two are neighbours that nobody seals.
_TERMS = (
    ("shared", "refuse", "descriptor"),
    ("shared", "refuse", "path"),
    ("shared", "wait", "path"),
    ("exclusive", "refuse", "path"),
    ("exclusive", "wait", "path"),
    ("shared", "wait", "ring"),
    ("shared", "refuse", "ring"),
    ("shared", "refuse", "path"),
)
SEALED = tuple(range(len(_TERMS)))
assert max(SEALED) < FILES
assert CORE in SEALED


def plan(seed: int, epoch: int) -> list[Plan]:
    chance = random.Random(f"{seed}-{epoch}")
    blocks = FILE_BYTES // BLOCK
    found = []
    for file, (kind, conflict, by) in enumerate(_TERMS):
        if chance.random() < 0.3:
            start, length = 0, blocks
        else:
            start = chance.choice(
                [0, chance.randrange(blocks - 1), chance.randrange(0, blocks, 32)]
            )
            length = chance.choice([1, 16, 32, 64, chance.randrange(1, blocks)])
            length = min(length, blocks - start)
        found.append(Plan(file, start * BLOCK, length * BLOCK, kind, conflict, by))
    return found


def targets(plans: list[Plan]) -> list[Target]:
    found = [Target() for _ in range(FILES)]
    for one in plans:
        exclusive = int(one.kind == "exclusive")
        found[one.file] = Target(one.start, one.start + one.length, 1, exclusive)
    return found


def dump(plans: list[Plan]) -> str:
    return json.dumps([asdict(one) for one in plans])


def load(text: str) -> list[Plan]:
    return [Plan(**fields) for fields in json.loads(text)]
