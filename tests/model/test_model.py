"""A bounded share of the model's run (`python -m tests.model` is the long one), and proof that it
finds faults."""

from __future__ import annotations

import itertools
import os
import secrets
from collections import Counter
from pathlib import Path

import pytest

from tests.model.mutants import MUTATIONS
from tests.model.operations import Generator
from tests.model.run import Run
from tests.model.shrinking import replay, shrink
from tests.model.system import Difference, system

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

OPERATIONS = int(os.environ.get("SEALSVC_MODEL", "12000"))


@pytest.mark.parametrize(
    ("filesystem", "reflink"), [("xfs", True), ("xfs", False), ("ext4", False)]
)
def test_the_system_does_what_the_model_says(
    tmp_path: Path, filesystem: str, reflink: bool
) -> None:
    seed = secrets.randbelow(1 << 32)
    print(f"python -m tests.model --filesystem {filesystem} --seed {seed}")
    counts: Counter[str] = Counter()
    with system(filesystem, reflink, tmp_path) as real:
        for name in ("fixed", f"{seed} 0"):
            run = Run(real, reflink)
            made = iter(Generator(name, reflink).next, None)
            run.run(itertools.islice(made, OPERATIONS // 2))
            counts += run.counts
    assert counts["seal"] > 20, counts
    assert counts["waited for seals"] > 5, counts
    assert counts["refused: Text file busy"] > 20, counts


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_fault_is_found(tmp_path: Path, mutation: str) -> None:
    with system("xfs", True, tmp_path, mutation) as real:
        run = Run(real, reflink=True)
        made = iter(Generator("fault", reflink=True).next, None)
        with pytest.raises(Difference) as found:
            run.run(itertools.islice(made, 20_000))
        if mutation == "drops-a-byte":
            operations, what = shrink(real, True, run.done, str(found.value))
            assert len(operations) <= 6, operations
            assert replay(real, True, operations) == what
