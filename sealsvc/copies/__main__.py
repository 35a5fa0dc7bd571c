"""The process that makes one copy for the service: `python -m sealsvc.copies SOURCE DESTINATION`.

Two descriptors by number, and on standard input what is to be done (Task). Each line on standard
output is an Update. SIGTERM cancels: the result says how far it came.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sealsvc.client import Client
from sealsvc.copies import calls
from sealsvc.copies.ends import Ends, open_ends
from sealsvc.copies.job import copy, predicted
from sealsvc.copies.measured import Measured
from sealsvc.copies.tasks import Task, Update
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import RecallSeals
from sealsvc.runtime import priority
from sealsvc.runtime.orphaned import end_with_reader

_PAUSE = 0.2  # seconds between two reports of progress


class _Reporter:
    def __init__(self) -> None:
        self._told = 0.0

    def progress(self, done: int, total: int, strategy: str) -> None:
        now = time.monotonic()
        if now >= self._told + _PAUSE:
            self._told = now
            tell(Update(done=done, total=total, step=strategy))


def tell(update: Update) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(update) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    priority.be_usual()
    calls.drop_privileges()
    cancel = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: cancel.set())
    end_with_reader(sys.stdout.fileno())
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    try:
        calls.act_as(task.uid)
        tell(Update(result=_result(task, int(sys.argv[1]), int(sys.argv[2]), cancel)))
    except Refusal as refusal:
        tell(Update(code=refusal.code, error=refusal.message))
        return 1
    except OSError as error:
        tell(Update(code="io-error", error=f"{error.filename or 'copy'}: {error.strerror}"))
        return 1
    return 0


def _result(task: Task, source: int, there: int, cancel: threading.Event) -> dict[str, Any]:
    _recall(task)
    ends = open_ends(source, there)
    if not task.recall:
        held, held_there = task.seals_of_source, task.seals_of_destination
        ends = Ends(replace(ends.source, seals=held), replace(ends.destination, seals=held_there))
    with calls.own_rights():
        measured = Measured(Path(task.measured))
    if task.dry_run:
        return predicted(ends, task, measured)
    result = copy(ends, task, measured, _Reporter().progress, cancel)
    try:
        with calls.own_rights():
            measured.save()
    except OSError as error:
        result["not_remembered"] = f"{task.measured}: {error.strerror}"
    return result


def _recall(task: Task) -> None:
    if not task.recall:
        return
    with Client(task.socket, timeout=None) as client:
        for seal in (*task.seals_of_source, *task.seals_of_destination):
            client.call(RecallSeals, seal=seal, wait=True, reason="copy")


if __name__ == "__main__":
    sys.exit(main())
