"""The rule book (rules.py) and the C that is generated from it agree about every case."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest

from sealsvc.core import rules
from sealsvc.core.rules import RULES, Policy, Trait
from sealsvc.linux.native import ffi, lib

BLOCK = 4096
GUARD = (4 * BLOCK, 8 * BLOCK)
LAST = 2**64 - BLOCK
# Before, up to, into, inside, over, from the end of, and behind the guard; to the end; overflowing.
RANGES = [
    *((0, BLOCK), (0, 4 * BLOCK), (2 * BLOCK, 4 * BLOCK), (5 * BLOCK, BLOCK), (0, 16 * BLOCK)),
    *((7 * BLOCK, 4 * BLOCK), (8 * BLOCK, BLOCK), (16 * BLOCK, BLOCK), (4 * BLOCK + 1, 1)),
    *((0, 0), (4 * BLOCK, 0), (8 * BLOCK - 1, 0), (8 * BLOCK, 0), (9 * BLOCK, 0)),
    *((LAST, BLOCK), (LAST, 2 * BLOCK), (BLOCK, LAST), (2 * BLOCK, LAST)),
]
ALL_TRAITS = [Trait(bits) for bits in range(1 << len(Trait))]


@pytest.mark.parametrize("key", RULES)
def test_python_and_c_find_the_same_conflicts(key: str) -> None:
    op = getattr(lib, f"SEAL_OP_{key}")
    rule = RULES[key]
    assert ffi.string(lib.seal_op_name(op)).decode() == rule.name
    guards = [GUARD, (0, 2**63), (0, 0)]
    found = set()
    for (offset, length), (start, end), traits in itertools.product(RANGES, guards, ALL_TRAITS):
        ours = rules.conflicts(rule, offset, length, start, end, traits)
        theirs = lib.seal_rule_meets(op, offset, length, start, end, int(traits))
        assert ours == bool(theirs), (rule.name, offset, length, start, end, traits)
        found.add(ours)
    assert False in found
    assert True in found or rule.name in ("read", "mmap", "write", "fallocate-allocate")


def test_the_structures_carry_every_trait() -> None:
    guard = ffi.new("struct seal_guard *", {"start": GUARD[0], "end": GUARD[1]})
    traits = ffi.new("struct seal_traits *")
    for (key, rule), wanted in itertools.product(RULES.items(), ALL_TRAITS):
        guard.exclusive, guard.backed = Trait.EXCLUSIVE in wanted, Trait.BACKED in wanted
        traits.reflink, traits.atomic = Trait.REFLINK in wanted, Trait.ATOMIC in wanted
        operation = ffi.new(
            "struct seal_operation *",
            {"op": getattr(lib, f"SEAL_OP_{key}"), "offset": GUARD[0], "length": BLOCK},
        )
        holder = int(Trait.HOLDER in wanted)
        ours = rules.conflicts(rule, GUARD[0], BLOCK, *GUARD, wanted)
        assert bool(lib.seal_conflicts(operation, guard, traits, holder)) == ours, (key, wanted)


def test_an_operation_that_nobody_knows_may_do_anything() -> None:
    assert rules.of("no-such-operation").name == "hidden"
    assert lib.seal_rule_meets(lib.SEAL_OP_COUNT, 1 << 40, 1, *GUARD, 0)
    assert ffi.string(lib.seal_op_name(lib.SEAL_OP_COUNT)) == b"hidden"
    assert ffi.string(lib.seal_op_name(-1)) == b"hidden"


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("by_holder", [False, True])
def test_python_and_c_refuse_with_the_same_errno(policy: Policy, by_holder: bool) -> None:
    ours = rules.policy_errno(policy, by_holder=by_holder)
    assert ours == lib.seal_rule_errno(int(policy), int(by_holder))


def test_a_seal_that_refuses_prevails_over_one_that_is_busy() -> None:
    numbers = (0, errno.ETXTBSY, errno.EBUSY)
    for one, other in itertools.product(numbers, numbers):
        told = rules.prevailing(one, other)
        assert told == lib.seal_rule_prevailing(one, other) == rules.prevailing(other, one)
    assert rules.prevailing(errno.EBUSY, errno.ETXTBSY) == errno.ETXTBSY


@pytest.mark.parametrize("name", ["clone", "dedupe", "copy-file-range"])
def test_sharing_anywhere_in_the_file_conflicts_where_blocks_are_shared(name: str) -> None:
    """XFS preallocates around a copied block, so that a store beside it moves."""
    rule, beside = rules.of(name), (64 * BLOCK, BLOCK)
    assert rules.conflicts(rule, *beside, *GUARD, Trait.REFLINK)
    assert not rules.conflicts(rule, *beside, *GUARD, Trait(0))


def test_an_exchange_conflicts_anywhere_in_the_file() -> None:
    """XFS_EXCHANGE_RANGE_TO_EOF exchanges the sizes as well, and stands in user memory."""
    rule = rules.of("exchange-range")
    assert rules.conflicts(rule, 64 * BLOCK, BLOCK, *GUARD, Trait(0))


def test_changes_are_those_that_reach_something() -> None:
    for key, rule in RULES.items():
        traits = ffi.new("struct seal_traits *", {"reflink": 1, "atomic": 1})
        op = getattr(lib, f"SEAL_OP_{key}")
        assert bool(lib.seal_changes_maps(op, traits)) == rule.changes_maps


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs/rules.md").read_text()
    assert rules.table() in page, "run: python -m sealsvc.core.rules, and put it into docs/rules.md"
