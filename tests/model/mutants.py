"""Faults that the model must find: `python -m tests.model.mutants NAME CONFIG` is a service that
has one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sealsvc.cli import service
from sealsvc.core.model import ByteRange
from sealsvc.enforce.base import Guard, Verdict
from sealsvc.enforce.fanotify import FanotifyEnforcer
from sealsvc.linux.host import prepare


def _guarding(change: Callable[[Guard], Guard]) -> None:
    put = FanotifyEnforcer.put

    def mutant(self: FanotifyEnforcer, watched: Any, guard: Guard) -> None:
        put(self, watched, change(guard))

    FanotifyEnforcer.put = mutant  # type: ignore[method-assign]


def _unenforced() -> None:
    """The guard covers the first block of the range alone."""
    _guarding(lambda guard: replace(guard, range=ByteRange(guard.range.offset, 4096)))


def _refuses_instead() -> None:
    """Seals that should wait refuse."""

    def change(guard: Guard) -> Guard:
        return replace(guard, verdict=Verdict.REFUSE) if guard.verdict is Verdict.WAIT else guard

    _guarding(change)


def _open_to_all() -> None:
    """Exclusive seals are kept like shared ones."""
    _guarding(lambda guard: replace(guard, exclusive=False))


def _drops_a_byte() -> None:
    """Preparing a range for a seal loses the byte at its start."""
    convert = prepare._convert

    def mutant(target: Any, sealed: ByteRange, progress: Any) -> None:
        convert(target, sealed, progress)
        os.pwrite(target.fd, b"\0", sealed.offset)

    prepare._convert = mutant


MUTATIONS: dict[str, Callable[[], None]] = {
    "unenforced": _unenforced,
    "refuses-instead": _refuses_instead,
    "open-to-all": _open_to_all,
    "drops-a-byte": _drops_a_byte,
}


def main() -> None:
    name, config = sys.argv[1:]
    MUTATIONS[name]()
    sys.argv[1:] = ["serve", "--config", config]
    service.main()


if __name__ == "__main__":
    main()
