"""One run: each operation to the model and to the real thing, and every answer compared."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable

from sealsvc.core.errors import Refusal
from tests.model.operations import BLOCK, Operation
from tests.model.system import PAUSE, Difference, System
from tests.model.world import Seal, Step, World, payload

BATCH = 48  # operations that the actor is given at once

_ALL = ["allocate", "unshare", "convert"]


class Run:
    """`done` are the operations so far, those that did not apply among them."""

    def __init__(self, system: System, reflink: bool) -> None:
        self.system, self.world = system, World(reflink)
        self.done: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self._batch: list[Step] = []
        system.begin()

    def run(self, operations: Iterable[Operation]) -> None:
        """Raises Difference."""
        for operation in operations:
            self.done.append(operation)
            kind = str(operation[0])
            if kind not in _OWN:
                self._kernel(operation)
                continue
            self._flush()
            if _OWN[kind](self, *operation[1:]):
                self.counts[kind] += 1
        self._flush()
        self._check()

    # What the actor does

    def _kernel(self, operation: Operation) -> None:
        step = self.world.step(operation)
        if step is None:
            self.counts["did not apply"] += 1
            return
        self.counts[str(operation[0])] += 1
        if step.waits:
            self._flush()
            self._wait(step)
            return
        self._batch.append(step)
        if len(self._batch) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        self.system.send([step.command for step in batch])
        for step, answer in zip(batch, self.system.answers(), strict=True):
            self._compare(step, answer)
        self.system.check_maps()

    def _compare(self, step: Step, answer: object) -> None:
        if isinstance(step.result, int) and step.result < 0:
            self.counts[f"refused: {os.strerror(-step.result)}"] += 1
        if answer != step.result:
            raise Difference(
                f"{_shown(step.command)}: the model says {_shown(step.result)}, the system"
                f" {_shown(answer)}{_first(step.result, answer)}"
            )

    def _wait(self, step: Step) -> None:
        """The holder is asked for each seal, and the operation waits until the last is given back.
        Of two files, the kernel decides which is asked for first."""
        self.system.send([step.command])
        left = {seal.number: seal for seal in step.waits}
        while left:
            seal = left.pop(self.system.expect_recall(left))
            if self.system.answered(PAUSE):
                raise Difference(f"{_shown(step.command)} did not wait for the seal {seal}")
            self.system.check_maps()
            self._forget(seal)
            self.system.give_back(seal.number)
        self.counts["waited for seals"] += 1
        (answer,) = self.system.answers()
        self._compare(step, answer)

    # What the holder and the operator do

    def _forget(self, seal: Seal) -> None:
        del self.world.seals[seal.number]

    def _chosen(self, number: int) -> Seal | None:
        held = list(self.world.seals.values())
        return held[number % len(held)] if held and not self.world.down else None

    def _seal(
        self, file: int, offset: int, length: int, exclusive: bool, wait: bool, prepared: bool
    ) -> bool:
        world = self.world
        content = world.files[file]
        if not length:
            length = len(content.data) - offset
        if world.down or not world.grantable(file, exclusive) or length <= 0:
            return False
        beyond = offset + length > len(content.data)
        expected = {"granted"}
        if beyond:
            expected = {"beyond-eof"}
        elif exclusive and content.open:
            expected = {"file-in-use"}
        elif not prepared:
            unfit = {"extent-unsuitable", "reflink-neighbours"}
            match world.suitable(file, offset, length):
                case False:
                    expected = unfit
                case None:
                    expected |= unfit
        terms = {
            "path": str(self.system.path(file)), "offset": offset, "length": length,
            "kind": "exclusive" if exclusive else "shared",
            "conflict": "wait" if wait else "refuse", "prepare": _ALL if prepared else [],
            "grace": 200.0,
        }  # fmt: skip
        try:
            id, fd = self.system.grant(**terms)
        except Refusal as refusal:
            if refusal.code == "try-later" and self._may_be_busy():
                expected.add(refusal.code)
            if refusal.code not in expected:
                raise Difference(f"seal of {terms}: {refusal}, the model says {expected}") from None
            self.counts[f"not granted: {refusal.code}"] += 1
            if prepared and not beyond:
                world.may_be_unshared(file)
            return False
        if "granted" not in expected:
            os.close(fd)
            raise Difference(f"seal of {terms} is granted, the model says {expected}")
        seal = world.grant(file, offset, length, exclusive, wait, prepared)
        self.system.hold(seal, id, fd)
        wanted = range(seal.start // BLOCK, seal.end // BLOCK)
        if missing := set(wanted) - set(self.system.held[seal.number].map):
            raise Difference(f"blocks {sorted(missing)} of a sealed range have no place")
        return True

    def _may_be_busy(self) -> bool:
        """A machine on which very many processes start has the service put off some grants, but
        not most."""
        return self.counts["not granted: try-later"] <= self.counts["seal"]

    def _return(self, number: int) -> bool:
        if (seal := self._chosen(number)) is None:
            return False
        self.system.check_maps()
        self._forget(seal)
        self.system.give_back(seal.number)
        return True

    def _recall(self, number: int) -> bool:
        if (seal := self._chosen(number)) is None:
            return False
        self.system.recall(seal.number)
        self._forget(seal)
        self.system.give_back(seal.number)
        return True

    def _store(self, number: int, where: int, seed: int) -> bool:
        held = list(self.world.seals.values())
        if not held:
            return False
        seal = held[number % len(held)]
        end = min(seal.end, len(self.world.files[seal.file].data))
        offset = seal.start + where % (end - seal.start)
        data = payload(seed, min(3000, end - offset))
        self.world.put(seal.file, offset, data)
        self.system.store(seal.number, offset, data)
        return True

    def _relocate(self, file: int, goal: str) -> bool:
        if self.world.down or not self.world.files[file].data:
            return False
        job = self.system.relocate(file, goal)
        shares = self.world.shares(file)
        if job.state == "done" and shares is not True:
            return bool(job.result["moved"])
        allowed = ["has no blocks", "has holes", *(["shares"] if shares is not False else [])]
        if job.state != "failed" or not any(text in job.error for text in allowed):
            raise Difference(f"relocation of f{file}: {job.state} {job.error}")
        return False

    def _copy(self, file: int, offset: int, length: int, source: int, other: int) -> bool:
        world = self.world
        length = min(length, len(world.files[source].data) - other)
        overlap = file == source and abs(offset - other) < length
        opens = any(seal.exclusive for one in {file, source} for seal in world.sealed(one))
        if world.down or length <= 0 or overlap or opens:
            return False
        job = self.system.copy(file, offset, length, source, other)
        if job.state != "done" or not job.result["whole"] or job.result["done"] != length:
            raise Difference(f"copy to f{file}: {job.state} {job.error} {job.result}")
        world.copied(file, offset, length, source, other)
        for strategy in job.result["bytes_by_strategy"]:
            self.counts[f"copied by {strategy}"] += 1
        return True

    # The service

    def _crash(self) -> bool:
        if self.world.down:
            return False
        self.world.down = True
        self.system.kill()
        return True

    def _start(self) -> bool:
        if not self.world.down:
            return False
        self.system.start()
        self.world.down = False
        for number in self.world.seals:
            if (state := self.system.state(number)) != "granted":
                raise Difference(f"after the restart a seal is {state}")
        return True

    # Everything

    def _check(self) -> bool:
        """Every byte of every file; equal tokens are one place, others are others."""
        where: dict[int, int] = {}
        taken: dict[int, int] = {}
        for number, (content, found) in enumerate(self.system.look()):
            file = self.world.files[number]
            if content != bytes(file.data):
                raise Difference(f"f{number} differs{_first(bytes(file.data), content)}")
            for block, token in enumerate(file.tokens):
                if token <= 0:
                    continue
                at = found.get(block)
                if at is None:
                    raise Difference(f"block {block} of f{number} was written and has no place")
                if where.setdefault(token, at) != at:
                    raise Difference(f"block {block} of f{number} should be shared, and is not")
                if taken.setdefault(at, token) != token:
                    raise Difference(f"block {block} of f{number} is another's as well ({at})")
        self.system.check_maps()
        return True


# What the actor does not do; each tells whether it applied.
_OWN: dict[str, Callable[..., bool]] = {
    "seal": Run._seal,
    "return": Run._return,
    "recall": Run._recall,
    "store": Run._store,
    "relocate": Run._relocate,
    "copy": Run._copy,
    "crash": Run._crash,
    "start": Run._start,
    "check": Run._check,
}


def _shown(value: object) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _first(one: object, other: object) -> str:
    if not (isinstance(one, bytes) and isinstance(other, bytes)):
        return ""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return f", first at byte {at}: {a:#x} and {b:#x}"
    return f" in length: {len(one)} and {len(other)}"
