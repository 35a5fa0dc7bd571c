"""The state machine: every action has who carries it out, and a step that cannot be recorded did
not happen."""

from __future__ import annotations

import asyncio

import pytest

from sealsvc.core.model import State
from sealsvc.core.states import Action, Step
from tests.support.lifecycle import lifecycle


def test_each_action_is_carried_out_by_one() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            assert set(parts.machine._does) == set(Action)
            with pytest.raises(ValueError, match="carried out already"):
                parts.machine.delegate({Action.KILL: lambda _: None})

    asyncio.run(scene())


def test_a_step_that_cannot_be_recorded_did_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            before = seal.standing

            def full(_: object) -> None:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as broken:
                broken.setattr(parts.machine.journal, "progressed", full)
                with pytest.raises(OSError, match="No space"):
                    parts.machine.step(seal, Step.RETURN)
            assert seal.standing == before
            assert not parts.told("state")
            with pytest.raises(KeyError):
                parts.machine.step(seal, Step.PROVEN)
            parts.machine.step(seal, Step.RETURN)
            assert (seal.state, seal.seqid) == (State.RETURNED, before.seqid + 1)

    asyncio.run(scene())


def test_observers_are_told_in_order_and_once_of_the_end() -> None:
    from sealsvc.lifecycle.seals import Seal, SealObserver

    told: list[str] = []

    class Named(SealObserver):
        def __init__(self, name: str) -> None:
            self.name = name

        def changed(self, seal: Seal) -> None:
            told.append(f"{self.name} {seal.state}")

        def ended(self, seal: Seal) -> None:
            told.append(f"{self.name} ended")

    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            first = Named("first")
            for observer in (first, Named("second"), first):
                seal.observe(observer)
            await parts.returns.give_back(seal)
            assert told == ["first returned", "second returned", "first ended", "second ended"]
            seal.tell_ended()
            assert len(told) == 4
            assert not seal.observers, "no reference cycle is left"

    asyncio.run(scene())


def test_a_map_may_change_while_the_holder_or_an_observer_says_so() -> None:
    from sealsvc.lifecycle.seals import Seal, SealObserver

    class Stale(SealObserver):
        stale = True

        def map_may_change(self, seal: Seal) -> bool:
            return self.stale

    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            assert not seal.may_change
            seal.quiesced = True
            assert seal.may_change
            seal.quiesced = False
            observer = Stale()
            seal.observe(observer)
            assert seal.may_change
            observer.stale = False
            assert not seal.may_change

    asyncio.run(scene())


def test_what_has_ended_is_remembered() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            table = parts.table
            assert (table.path_of(seal.id), table.owner_of(seal.id)) == (
                seal.path, seal.process.holder.uid
            )  # fmt: skip
            assert table.ended(seal.id) is None
            await parts.returns.give_back(seal)
            assert table.path_of(seal.id) == seal.path
            assert table.owner_of(seal.id) == seal.process.holder.uid
            ended = table.ended(seal.id)
            assert ended is not None
            assert ended.state is State.RETURNED
            assert table.path_of("0" * 24) is None

    asyncio.run(scene())
