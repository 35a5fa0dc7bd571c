"""Lists of operations: written, read, done again, and shrunk to what matters."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.promise import layout
from tests.promise.attack import Attack
from tests.promise.layout import Plan
from tests.promise.run import Epoch, Place, Violation, open_all, window
from tests.promise.seals import Broken

_numbers = itertools.count(1_000_000)  # of epochs: a replay has files of its own
_WORKERS, _PRIVILEGED = 4, 0b1100  # numbers say who is who, as in the run
PATIENCE = 120.0  # seconds for shrinking one


def write(path: Path, violation: Violation) -> None:
    """Lines of records, and comments that have what a replay needs beside them."""
    head = [
        f"# {violation.what}",
        f"# fs {violation.fs}",
        f"# reflink {violation.reflink}",
        f"# seed {violation.seed}",
        f"# plans {layout.dump(violation.plans)}",
    ]
    path.write_text("\n".join([*head, *violation.records]) + "\n")


def read(path: Path) -> Violation:
    lines = path.read_text().splitlines()
    told = dict(
        line[2:].split(" ", 1) for line in lines if line.startswith("# ") and " " in line[2:]
    )
    return Violation(
        lines[0][2:],
        layout.load(told["plans"]),
        [line for line in lines if line and not line.startswith("#")],
        int(told["seed"]),
        0,
        told["fs"],
        int(told["reflink"]),
    )


def replay(
    where: Place,
    plans: Sequence[Plan],
    records: Sequence[str],
    seed: int,
    ordered: bool = True,
    workers: int = 3,
    privileged: int = 0b100,
) -> str:
    """Do it again on fresh files; what broke, or nothing. `ordered`: one at a time, in the order of
    the list."""
    number = next(_numbers)
    made = Epoch(where, number, plans, str(seed))
    try:
        with Attack(seed, where.fs, workers, privileged, records, ordered) as attack:
            try:
                open_all(attack, number, 0, made)
                window(attack, _longest(records), made)
                made.check(1 << 20)
            except Broken as broken:
                return str(broken)
            finally:
                attack.end()
    finally:
        made.close()
    return ""


def _longest(records: Sequence[str]) -> int:
    """Of the lists of the workers."""
    counts = [0] * _WORKERS
    for record in records:
        counts[int(record.split(" ", 1)[0])] += 1
    return max(counts, default=0)


def shrink(where: Place, violation: Violation) -> Violation:
    """The same with fewer operations. What broke it stands near the end of the list as a rule, so
    the end is tried first. Where it does not happen again in order, all workers at once are tried;
    where it does not happen again at all, the list stays as it is."""
    deadline = time.monotonic() + PATIENCE
    for ordered, tries in ((True, 2), (False, 2)):

        def breaks(records: Sequence[str], ordered: bool = ordered, tries: int = tries) -> bool:
            return any(
                replay(where, violation.plans, records, violation.seed, ordered)
                for _ in range(tries)
                if time.monotonic() < deadline
            )

        for part in _ends(violation.records):
            if breaks(part):
                records = minimal(part, breaks, deadline)
                what = replay(where, violation.plans, records, violation.seed, ordered)
                return replace(violation, what=what or violation.what, records=records)
    return replace(violation, what=f"{violation.what} (it did not happen again)")


def _ends(records: list[str]) -> Iterator[list[str]]:
    """The last of them, more and more, to all."""
    size = 32
    while size < len(records):
        yield records[-size:]
        size *= 4
    yield records


def minimal(
    records: Sequence[str], breaks: Callable[[Sequence[str]], bool], deadline: float
) -> list[str]:
    """Zeller's ddmin: what is left breaks it, and no part of it that was tried can be left out."""
    left, pieces = list(records), 2
    while len(left) > 1 and time.monotonic() < deadline:
        size = -(-len(left) // pieces)
        for start in range(0, len(left), size):
            without = left[:start] + left[start + size :]
            if without and breaks(without):
                left, pieces = without, max(pieces - 1, 2)
                break
            if time.monotonic() >= deadline:
                return left
        else:
            if size == 1:
                break
            pieces = min(pieces * 2, len(left))
    return left
