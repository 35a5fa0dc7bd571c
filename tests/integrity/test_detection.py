"""What each profile detects, measured: a table of docs/integrity.md (python THIS FILE writes it).

Eight blocks of random data are tagged; then a fault is put into them. It counts as found when
verify names the very blocks that are not as they were, and no other. Once the tags stay where they
are, as in the service's store; once they go with their blocks, as on a device that keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sealsvc.integrity import engine
from sealsvc.integrity.engine import Values
from sealsvc.integrity.profiles import built_in

PAGE = Path(__file__).parents[2] / "docs/integrity.md"
PROFILES = (
    "t10-dif1-4096",
    "t10-dif1-4096-ip",
    "t10-dif3-4096",
    "nvme32-sts16-4096",
    "nvme64-sts0-4096",
    "crc32c-4k",
    "sha256-4k",
)
BLOCK, BLOCKS, TIMES = 4096, 8, 64
Blocks = npt.NDArray[np.uint8]  # (BLOCKS, BLOCK); tags are (BLOCKS, width)


def flip(data: Blocks, old: Blocks, at: int, rng: np.random.Generator) -> None:
    data[at, rng.integers(BLOCK)] ^= np.uint8(1 << rng.integers(8))


def torn(data: Blocks, old: Blocks, at: int, rng: np.random.Generator) -> None:
    line = int(rng.integers(BLOCK // 64)) * 64
    data[at, line : line + 64] = old[at, line : line + 64]


def words(data: Blocks, old: Blocks, at: int, rng: np.random.Generator) -> None:
    """Two 16-bit words change places: the sum of RFC 1071 is the same."""
    pairs = data[at].view(np.uint16)
    one, other = rng.choice(BLOCK // 2, 2, replace=False)
    pairs[one], pairs[other] = pairs[other], pairs[one]


# Of whole blocks: which block's data (and tag, where it goes along) each place has after it.
def swapped(at: int) -> list[int]:
    order = list(range(BLOCKS))
    order[at], order[(at + 1) % BLOCKS] = order[(at + 1) % BLOCKS], order[at]
    return order


def shifted(at: int) -> list[int]:
    return [0, *range(BLOCKS - 1)]


INSIDE: dict[str, Callable[..., None]] = {
    "bit flip": flip,
    "torn 64-byte line": torn,
    "two 16-bit words swapped": words,
}
MOVED = {"two blocks swapped": swapped, "shifted by one block": shifted}
REPLACED = ("stale block", "block of another file")


def values(first: int) -> Values:
    return Values(block=first, reftag=7)


def named(profile, data: Blocks, tags, changed: set[int]) -> bool:
    _, errors = engine.verify(profile, data.tobytes(), tags, values(1000))
    return {error.block for error in errors} == changed


def found(name: str, fault: str, *, along: bool) -> int:
    """Of TIMES. `along`: tags go with their blocks."""
    profile, count = built_in()[name], 0
    for seed in range(TIMES):
        rng = np.random.default_rng(seed)
        data, old, foreign = rng.integers(0, 256, (3, BLOCKS, BLOCK), np.uint8)
        tags, stale = (
            engine.generate(profile, part.tobytes(), values(1000)) for part in (data, old)
        )
        others = engine.generate(profile, foreign.tobytes(), values(5000))
        at = int(rng.integers(BLOCKS))
        changed = {at}
        if fault in INSIDE:
            INSIDE[fault](data, old, at, rng)
        elif fault in MOVED:
            order = MOVED[fault](at)
            changed = {place for place, block in enumerate(order) if place != block}
            data = data[order]
            tags = tags[order] if along else tags
        else:
            source, its = (old, stale) if fault == "stale block" else (foreign, others)
            data[at] = source[at]
            if along:
                tags[at] = its[at]
        count += named(profile, data, tags, changed)
    return count


def table() -> str:
    faults = [*INSIDE, *MOVED, *REPLACED]
    lines = [
        "| profile | tags | " + " | ".join(faults) + " |\n",
        "| --- " * (len(faults) + 2) + "|\n",
    ]
    for name in PROFILES:
        for along, where in ((False, "in the store"), (True, "with the block")):
            cells = [str(found(name, fault, along=along)) for fault in faults]
            lines.append(f"| `{name}` | {where} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def rendered(page: str) -> str:
    made = f"<!-- detection -->\n{table()}"
    return re.sub(r"<!-- detection -->\n(?:\|.*\n)*", lambda _: made, page)


def test_the_page_has_what_is_measured() -> None:
    assert PAGE.read_text() == rendered(PAGE.read_text())


def test_in_the_store_everything_is_found_but_what_a_sum_cannot_see() -> None:
    for name in PROFILES:
        for fault in (*INSIDE, *MOVED, *REPLACED):
            blind = name.endswith("-ip") and fault == "two 16-bit words swapped"
            assert found(name, fault, along=False) == (0 if blind else TIMES), (name, fault)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
