"""Returns: nothing is given back that is still mapped, and a part that is leaves the rest."""

from __future__ import annotations

import asyncio
import os

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, IoMode, State
from tests.support.lifecycle import BLOCK, FILE, lifecycle, sleeper


def test_what_is_mapped_is_not_returned_and_may_be_written_again() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            parts.host.map(FILE, os.getpid())
            with pytest.raises(Refusal) as refused:
                await parts.returns.give_back(seal)
            assert refused.value.code == "still-mapped"
            assert str(os.getpid()) in refused.value.details["mappings"][0]
            assert (seal.state, parts.unsettled, parts.settled) == (State.GRANTED, [seal], [])
            parts.host.unmap(FILE, os.getpid())
            await parts.returns.give_back(seal)
            assert seal.state is State.RETURNED
            assert parts.settled == [None]
            assert not len(parts.table)
            assert parts.table.ended(seal.id) is not None

    asyncio.run(scene())


def test_a_mapping_that_another_seal_explains_is_not_counted() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            with sleeper() as other:
                try:
                    seal = await parts.grant()
                    beside = await parts.grant(holder=other.pid, length=BLOCK)
                    parts.host.map(FILE, other.pid)
                    left = await parts.returns.remaining_mappings(seal, ByteRange(0, 2 * BLOCK))
                    assert len(left) == 1
                    assert f"{BLOCK}" in left[0], "the first block is the other seal's"
                    assert await parts.returns.remaining_mappings(seal, beside.effective) == []
                finally:
                    other.kill()

    asyncio.run(scene())


def test_a_part_at_an_end_is_returned_with_its_whole_blocks() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(length=4 * BLOCK)
            await parts.returns.give_back_part(seal, ByteRange(0, BLOCK + 1))
            assert seal.range == ByteRange(BLOCK + 1, 3 * BLOCK - 1)
            assert seal.effective == ByteRange(BLOCK, 3 * BLOCK), "a shared block stays sealed"
            assert parts.settled == [ByteRange(0, BLOCK)]
            assert parts.conflict(0).done.result(timeout=0) == 0
            assert not parts.conflict(BLOCK).done.done()

    asyncio.run(scene())


def test_a_part_in_the_middle_is_refused() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(length=4 * BLOCK)
            with pytest.raises(Refusal) as refused:
                await parts.returns.give_back_part(seal, ByteRange(BLOCK, BLOCK))
            assert refused.value.code == "bad-request"
            assert seal.range.length == 4 * BLOCK

    asyncio.run(scene())


def test_a_recall_is_over_when_what_it_wanted_is_back() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(length=4 * BLOCK)
            waiter = parts.conflict(0)
            assert seal.state is State.RECALLED
            await parts.returns.give_back_part(seal, ByteRange(0, BLOCK))
            assert (seal.state, seal.wanted, seal.deadline) == (State.GRANTED, None, None)
            assert waiter.done.result(timeout=0) == 0

    asyncio.run(scene())


def test_a_downgrade_waits_for_writable_mappings_to_go() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(iomode=IoMode.RW)
            parts.host.map(FILE, os.getpid())
            with pytest.raises(Refusal) as refused:
                await parts.returns.downgrade(seal)
            assert refused.value.code == "still-mapped"
            parts.host.unmap(FILE, os.getpid())
            await parts.returns.downgrade(seal)
            assert seal.request.iomode is IoMode.READ

    asyncio.run(scene())


def test_a_holder_that_knows_no_such_seal_is_believed_when_nothing_is_mapped() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            parts.recaller.recall(seal, "asked for")
            parts.host.map(FILE, os.getpid())
            assert not await parts.returns.forget(seal)
            parts.host.unmap(FILE, os.getpid())
            assert await parts.returns.forget(seal)
            assert not seal.live

    asyncio.run(scene())
