"""Holding a seal from Python: mappings, recalls in a thread and an event loop, fork, restarts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from sealsvc.client import AsyncClient, Client
from sealsvc.protocol.seals import Recall
from tests.support.refusals import refusal
from tests.support.service import MiB, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

UNIT = 65536


def test_a_block_holds_maps_and_gives_back(client: Client, file: Path) -> None:
    with client.hold(file, kind="shared", offset=UNIT + 100, length=5000, tag="me") as held:
        view = held.mmap()
        assert len(view) == 5000
        view[:5] = b"hello"
        assert held.array("u1")[:5].tobytes() == b"hello"
        assert held.validate().state == "active"
        shown = client.show(held.id)
        assert (shown.holder.pid, shown.tag, shown.state) == (os.getpid(), "me", "active")
    assert client.show(held.id).state == "returned"
    with file.open("rb") as opened:
        assert os.pread(opened.fileno(), 5, UNIT + 100) == b"hello"
    with pytest.raises(ValueError, match="was given back"):
        held.mmap()


def test_a_recall_is_told_in_a_thread(client: Client, file: Path) -> None:
    told: list[tuple[Recall, str]] = []
    with client.hold(
        file,
        kind="shared",
        grace=200,
        on_recall=lambda recall: told.append((recall, threading.current_thread().name)),
    ) as held:
        held.mmap()
        # By another process: the holder's own conflicts are refused.
        intruder = subprocess.Popen(["truncate", "-s", str(MiB // 2), file])
        assert held.recalled.wait(PATIENCE)
        assert intruder.poll() is None
        held.progress()
    assert intruder.wait(PATIENCE) == 0
    ((recall, thread),) = told
    assert recall.operation is not None
    assert (recall.operation.name, thread) == ("truncate", f"seal {held.id}")


def test_what_is_in_use_is_not_given_back(client: Client, file: Path) -> None:
    held = client.hold(file, kind="shared")
    array: np.ndarray | None = held.array()
    with pytest.raises(BufferError):
        held.close()
    assert client.show(held.id).state in ("granted", "active")
    assert array is not None
    assert array[0] == file.read_bytes()[0]
    array = None
    held.close()
    assert client.show(held.id).state == "returned"


def test_a_child_has_nothing_and_keeps_nothing(client: Client, file: Path) -> None:
    with client.hold(file, kind="shared") as held:
        held.mmap()
        goes, ends = os.pipe(), os.pipe()
        if (child := os.fork()) == 0:
            status = 1
            try:
                for attempt in (held.mmap, held.fileno, client.status):
                    with pytest.raises(RuntimeError):
                        attempt()
                held.close()  # nothing: it is the parent's
                os.write(goes[1], b"x")
                os.read(ends[0], 1)
                status = 0
            finally:
                os._exit(status)
        assert os.read(goes[0], 1) == b"x"
    # It lives, and the seal was given back all the same.
    assert client.show(held.id).state == "returned"
    os.write(ends[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for fd in (*goes, *ends):
        os.close(fd)


def test_for_reading(client: Client, file: Path) -> None:
    with client.hold(file, kind="shared", iomode="read") as held, pytest.raises(TypeError):
        held.mmap()[0] = 1


def test_in_an_event_loop(socket: str, file: Path) -> None:
    told = []

    async def on_recall(recall: Recall) -> None:
        told.append(recall.reason)

    async def main() -> None:
        async with AsyncClient(socket) as client:
            async with await client.hold(file, on_recall, kind="shared") as held:
                held.mmap()
                await client.recall(seal=held.id, reason="test")
                await asyncio.wait_for(held.recalled.wait(), PATIENCE)
            assert (await client.show(held.id)).state == "returned"

    asyncio.run(main())
    assert told == ["test"]


def test_a_refused_file_leaves_nothing_open(client: Client, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"x" * 4096)
    before = len(os.listdir("/proc/self/fd"))
    assert refusal(lambda: client.hold(plain, offset=8192, length=1)).code
    with pytest.raises(FileNotFoundError):
        client.hold(tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before


def test_recalls_come_again_after_a_restart(xfs: Path, tmp_path: Path) -> None:
    file = xfs / f"held-{os.getpid()}"
    file.write_bytes(os.urandom(MiB))
    running = Running(tmp_path, [xfs], 'accept_risks = ["all"]\n')
    running.start()
    running.ready()
    try:
        with Client(str(running.socket)) as first, first.hold(file, kind="shared") as held:
            running.kill()
            running.start()
            running.ready()
            with Client(str(running.socket)) as client:
                client.recall(seal=held.id)  # told to nobody, or to the listener that is back
                until(held.recalled.is_set)
            assert held.last_recall is not None
        with Client(str(running.socket)) as client:
            assert client.show(held.id).state == "returned"
    finally:
        running.end()
        file.unlink()
