"""Grants: what is undone when a step fails, and what is found out in between."""

from __future__ import annotations

import asyncio
import errno
from contextlib import ExitStack

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Kind, State
from sealsvc.lifecycle.grants import FileLocks
from sealsvc.lifecycle.seals import Seal
from tests.support.lifecycle import BLOCK, FILE, SIZE, lifecycle


def test_a_grant_is_journalled_entered_and_published() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(offset=BLOCK, length=BLOCK)
            assert parts.table.get(seal.id) is seal
            assert (seal.state, seal.seqid) == (State.GRANTED, 1)
            assert seal.effective == ByteRange(BLOCK, BLOCK)
            assert [event.seal for event in parts.told("granted")] == [seal.id]
            assert parts.grants.counters == {"grants": 1, "refusals": 0}

    asyncio.run(scene())


@pytest.mark.parametrize("step", ["open", "prepare", "arm", "settle", "read-map", "mark"])
def test_a_step_that_fails_leaves_no_guard(step: str) -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            parts.host.fail(step, errno.EIO)
            with pytest.raises(Refusal, match=step):
                await parts.grant()
            assert not len(parts.table)
            assert parts.conflict().done.result(timeout=0) == 0, "nothing holds it"
            assert [event.data["code"] for event in parts.told("refused")] == ["io-error"]
            await parts.grant()

    asyncio.run(scene())


def test_what_comes_before_the_record_may_refuse_and_is_undone() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            undone: list[str] = []

            def before(seal: Seal, undo: ExitStack) -> None:
                undo.callback(undone.append, seal.id)
                raise Refusal("limit-reached", "the table is full")

            grant = parts.grants.grant
            parts.grants.grant = lambda *asked: grant(*asked, before)  # type: ignore[method-assign]
            with pytest.raises(Refusal, match="full"):
                await parts.grant()
            assert len(undone) == 1
            assert not len(parts.table)
            assert parts.conflict().done.done()

    asyncio.run(scene())


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE + 1), (SIZE, None), (SIZE - 1, 2)])
def test_a_range_beyond_the_end_is_refused(offset: int, length: int | None) -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            with pytest.raises(Refusal) as refused:
                await parts.grant(offset=offset, length=length)
            assert refused.value.code == "beyond-eof"
            assert refused.value.details["size"] == SIZE

    asyncio.run(scene())


def test_an_exclusive_seal_excludes_others_of_other_holders() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            await parts.grant(kind=Kind.EXCLUSIVE, holder=1)
            with pytest.raises(Refusal) as refused:
                await parts.grant()
            assert refused.value.code == "seal-conflict"
            assert refused.value.details

    asyncio.run(scene())


def test_grants_of_one_file_go_one_after_the_other_and_leave_no_lock() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            file = parts.host.identify(FILE)
            locks, order = FileLocks(), []

            async def enter(number: int) -> None:
                async with locks.of(file):
                    order.append(number)
                    await asyncio.sleep(0)
                    order.append(number)

            await asyncio.gather(*(enter(number) for number in range(3)))
            assert order == [0, 0, 1, 1, 2, 2]
            assert not locks._locks
            seals = await asyncio.gather(*(parts.grant(length=BLOCK) for _ in range(5)))
            assert len({seal.id for seal in seals}) == 5

    asyncio.run(scene())
