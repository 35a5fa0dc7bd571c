"""An export with --restart: its process is started again when it dies."""

from __future__ import annotations

import os
import signal
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
