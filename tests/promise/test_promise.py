"""A short share of the fuzzer with each run of the tests: a seed that stays, and a new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.promise import layout
from tests.promise.attack import Attack, program
from tests.promise.mutations import MUTATIONS, ROOT
from tests.promise.replay import minimal, read, replay, shrink, write
from tests.promise.run import Fuzz, Violation, place

SECONDS = float(os.environ.get("SEALSVC_PROMISE", "20")) / 6
FIXED = 11

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(SECONDS * 50 + 400)]


@pytest.fixture(autouse=True)
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")


@pytest.mark.parametrize(("fs", "reflink"), [("xfs", 1), ("xfs", 0), ("ext4", 0)])
def test_nothing_sealed_moves(fs: str, reflink: int, tmp_path: Path) -> None:
    with place(fs, reflink, tmp_path / "run") as where:
        for seed in (FIXED, secrets.randbelow(1 << 32)):
            print(f"seed {seed}")
            fuzz = Fuzz(where, seed)
            for longer in (1, 4, 16):  # on a slow machine little happens in SECONDS
                fuzz.run(10**9, SECONDS * longer)
                if fuzz.violations or (fuzz.counts["checks"] and _refused(fuzz)):
                    break
            print(f"{fuzz.operations} operations, {fuzz.counts['checks']} checks")
            for violation in fuzz.violations:
                found = shrink(where, violation)
                pytest.fail("\n".join([found.what, f"seed {seed}", *found.records[:100]]))
            assert fuzz.counts["checks"] > 0, "nothing was sealed"
            assert _refused(fuzz) > 0, "no operation was refused by a seal"


def _refused(fuzz: Fuzz) -> int:
    return sum(n for name, n in fuzz.counts.items() if name.endswith(": refused"))


def test_records_follow_from_seed_and_number() -> None:
    def records(seed: int) -> list[str]:
        with Attack(seed, "xfs", 1, 0) as attack:
            attack.begin(1, 0, Path("/"), layout.targets(layout.plan(seed, 1)))
            return attack.describe([(0, n) for n in range(50)])

    assert records(7) == records(7)
    assert records(7) != records(8)


def test_shrinking_leaves_what_matters() -> None:
    def breaks(records: Sequence[str]) -> bool:
        return {"5", "71"} <= set(records)

    assert minimal([str(n) for n in range(100)], breaks, float("inf")) == ["5", "71"]


def test_a_map_that_moves_is_found_and_shrunk(tmp_path: Path) -> None:
    """The observer itself: a file that is taken for sealed and is not, and a list with a punch."""
    kinds = program()[1]
    plans = [layout.Plan(8, 0, 65536, "shared", "refuse", "none")]
    punch = _record(kinds.index("fallocate"), offset=8192, length=4096, argument=3)
    free = _record(kinds.index("read"), offset=0, length=4096, argument=0)
    violation = Violation("", plans, [free] * 5 + [punch] + [free] * 5, 1, 1, "ext4")
    with place("ext4", 0, tmp_path / "run") as where:
        found = shrink(where, violation)
        assert found.records == [punch]
        assert "the map was" in found.what
        write(tmp_path / "list", found)
        again = read(tmp_path / "list")
        assert again.records == [punch]
        assert replay(where, again.plans, again.records, again.seed)
        assert not replay(where, again.plans, [free], again.seed)


def _record(kind: int, offset: int, length: int, argument: int) -> str:
    """By worker 0, on file 8, by a descriptor that it holds."""
    head = kind.to_bytes(2, "little") + bytes(2) + bytes([8, 9, 0, 1]) + bytes(8)
    words = b"".join(n.to_bytes(8, "little") for n in (offset, length, argument, 0))
    return f"0 {(head + words).hex()}"


def test_each_mutation_still_has_the_code_that_it_changes() -> None:
    for mutation in MUTATIONS:
        for change in mutation.changes:
            text = (ROOT / change.file).read_text()
            assert text.count(change.old) == 1, f"{mutation.name}: {change.file}"
