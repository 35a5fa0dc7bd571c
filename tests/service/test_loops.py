"""Loop devices: known by the file that backs them, and asked without waiting for file systems."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.linux import loops
from sealsvc.protocol.seals import Return
from tests.service.test_environment import shut_down
from tests.support.refusals import refusal
from tests.support.scratch import MiB, mounted
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel


@contextmanager
def attached(path: Path) -> Iterator[str]:
    done = subprocess.run(
        ["losetup", "--find", "--show", path], capture_output=True, text=True, check=True
    )
    loop = done.stdout.strip()
    try:
        yield loop
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_backed_by_a_name_that_is_gone(client: Client, file: Path, kind: str) -> None:
    name = file.with_suffix(".name")
    os.link(file, name)
    with attached(name) as loop:
        name.unlink()
        refused = refusal(lambda: client.grant(path=str(file), kind=kind))
        assert refused.code == "backs-loop-device"
        assert loop in refused.message
    reply = client.grant(path=str(file), kind=kind)
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)


def test_backed_in_another_mount_namespace(client: Client, file: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    line = f"mount --bind {file.parent} {hidden}; losetup --find --show {hidden}/{file.name}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", line], capture_output=True, text=True, check=True
    )
    loop = done.stdout.strip()
    try:
        refused = refusal(lambda: client.grant(path=str(file), kind="shared"))
        assert refused.code == "backs-loop-device"
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_a_device_is_asked_again_for_another_file(client: Client, file: Path) -> None:
    other = file.with_suffix(".other")
    other.write_bytes(bytes(MiB))
    with attached(other) as first:
        reply = client.grant(path=str(file), kind="shared")
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
    try:
        with attached(file) as second:
            refused = refusal(lambda: client.grant(path=str(file), kind="shared", offset=4096))
            assert refused.code == "backs-loop-device"
            assert second in refused.message
            assert first.startswith("/dev/loop")
    finally:
        other.unlink()


def test_a_device_whose_file_system_was_shut_down_cannot_be_of_another(file: Path) -> None:
    with mounted("xfs") as dead:
        backing = dead / "backing"
        backing.write_bytes(bytes(MiB))
        with attached(backing) as loop:
            shut_down(dead)
            # Somebody else has the file open, so that a lease cannot tell.
            with file.open("rb"), file.open("r+b") as opened:
                devices = loops.LoopDevices()
                devices.refuse_if_backing(opened.fileno(), str(file))
            (failed,) = (a.error for n, a in devices._all() if f"/dev/{n}" == loop)
            assert failed == errno.EIO


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loop devices do not answer until the event is set."""
    answer = threading.Event()

    def ask(name: str, asked: loops._Asked) -> None:
        asked.thread_id = threading.get_native_id()
        answer.wait(PATIENCE)
        asked.done.set()

    monkeypatch.setattr(loops, "_ask", ask)
    monkeypatch.setattr(loops, "_PATIENCE", 0.05)
    yield answer
    answer.set()


def test_a_device_that_does_not_answer(dead: threading.Event, file: Path) -> None:
    """A file that nobody else has open cannot back it; any other is refused, to be tried again."""
    backing = file.with_suffix(".backing")
    backing.write_bytes(bytes(MiB))
    fd = os.open(file, os.O_RDWR)
    try:
        with attached(backing):
            devices = loops.LoopDevices()
            devices.refuse_if_backing(fd, str(file))
            with file.open("rb"), pytest.raises(Refusal) as caught:
                devices.refuse_if_backing(fd, str(file))
            assert caught.value.code == "try-later"
            dead.set()
    finally:
        os.close(fd)
        backing.unlink()
