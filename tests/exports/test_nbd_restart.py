"""An export with --restart: its process is started again when it dies."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from sealsvc.exports.nbd import Nbd
from sealsvc.exports.runtime import Record, Runtime, start_time
from tests.exports.exporting import Exports
from tests.exports.loading import loaded
from tests.support.waiting import until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}"),
]


def record(exports: Exports) -> Record:
    return Runtime(str(exports.directory)).read("disk")


def waiting(exports: Exports) -> int:
    """The process that waits beside the one that serves."""
    found = record(exports)
    children = Path(f"/proc/{found.supervisor}/task/{found.supervisor}/children").read_text()
    others = [int(pid) for pid in children.split() if int(pid) != found.pid]
    return others[0] if others and Path(f"/proc/{others[0]}/comm").read_text() == "nbdkit\n" else 0


def serves_again(exports: Exports, after: int) -> bool:
    found = exports.show("disk")
    return found["pid"] != after and found["state"] == "serving"


def test_a_killed_export_is_there_again_and_lost_nothing(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image, "--restart") as info:
        supervisor = record(exports).supervisor
        with loaded(info["device"]):
            for _ in range(3):
                pid = record(exports).pid
                os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: serves_again(exports, pid), what="another process")
        assert record(exports).supervisor == supervisor
        refused = exports.ask("recover", "disk")
        assert refused.returncode == 2
        assert "needs none" in refused.stderr
    assert start_time(supervisor) == 0


def test_a_killed_supervisor_is_recovered_with_its_export(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image, "--restart"):
        before = record(exports)
        os.kill(before.supervisor, signal.SIGKILL)
        until(lambda: exports.show("disk")["state"] == "dead")  # nbdkit ends with its parent
        exports.call("recover", "disk")
        after = record(exports)
        assert after.is_supervised
        assert after.supervisor != before.supervisor
        os.kill(after.pid, signal.SIGKILL)
        until(lambda: serves_again(exports, after.pid), what="another process")


def test_what_never_served_is_not_started_again(exports: Exports) -> None:
    done = exports.ask("create", "--type", "nbd", "--restart", "disk", exports.directory)
    assert done.returncode == 1
    assert f"opening {exports.directory}: Is a directory" in done.stderr
    assert list(exports.directory.iterdir()) == []


def test_the_process_that_waits_is_the_next_one(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image, "--restart") as info, loaded(info["device"]):
        until(lambda: waiting(exports) > 0, what="one that waits")
        pid, following = record(exports).pid, waiting(exports)
        os.kill(pid, signal.SIGKILL)
        until(lambda: serves_again(exports, pid), what="another process")
        assert record(exports).pid == following
        until(lambda: waiting(exports) not in (0, following), what="another that waits")
        following = waiting(exports)
    assert start_time(following) == 0


def test_one_that_waits_is_replaced_and_both_can_be_killed(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image, "--restart") as info, loaded(info["device"]):
        until(lambda: waiting(exports) > 0, what="one that waits")
        pid, first = record(exports).pid, waiting(exports)
        os.kill(first, signal.SIGKILL)
        until(lambda: waiting(exports) not in (0, first), what="another that waits")
        assert record(exports).pid == pid, "the one that serves has nothing to do with it"
        os.kill(waiting(exports), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        until(lambda: serves_again(exports, pid), what="a third one")


def test_a_port_of_its_own_is_listened_on_through_kills(exports: Exports, image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        exports.serving("nbd", "disk", image, "--restart", "-O", f"listen={port}") as info,
        loaded(info["device"]),
    ):
        assert info["device"] == f"nbd://127.0.0.1:{port}"
        pid = record(exports).pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: serves_again(exports, pid), what="another process")
