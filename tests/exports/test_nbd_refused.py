"""Requests of an export that the keeper of the seals refuses: it cannot look what they are, because
it has no descriptor left. No client hears of it."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.exports.nbd import Nbd
from tests.exports.exporting import Exports
from tests.exports.test_nbd import SYSTEM, TRIED
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}"),
]


@contextmanager
def descriptors_left(pid: int, count: int) -> Iterator[None]:
    """The process can open no more than so many, whatever it has open."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = (number for number in range(1 << 20) if number not in taken)
    limit = [next(free) for _ in range(count + 1)][-1]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def asked(uri: str, call: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["nbdsh", "-u", uri, "-c", TRIED.format(call)],
        env=SYSTEM, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


# None: the kernel denies by itself (EPERM). One, for the event: the keeper has none for
# /proc/TID/stack, and the operation that it knows nothing of is the holder's own conflict (EBUSY).
@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("call", ["h.pwrite(b'x' * 4096, 8192)", "h.pread(4096, 8192)"])
def test_what_is_refused_is_tried_again_until_it_is_done(
    exports: Exports, image: Path, running: Running, left: int, call: str
) -> None:
    with exports.serving("nbd", "disk", image) as info:
        with descriptors_left(running.keeper(), left):
            client = asked(info["device"], call)
            until(lambda: exports.show("disk")["counters"]["refusals"] >= 3, what="refusals")
            assert client.poll() is None
        assert client.communicate(timeout=PATIENCE)[0].strip() == "done"
        shown = exports.show("disk")
        assert shown["counters"]["errors"] == 0
    if "pwrite" in call:
        assert image.read_bytes()[8192 : 8192 + 4096] == b"x" * 4096


def test_one_that_is_refused_for_longer_than_it_may_wait_fails_with_eio(
    exports: Exports, image: Path, running: Running
) -> None:
    with (
        exports.serving("nbd", "disk", image, "--patience", "500ms") as info,
        descriptors_left(running.keeper(), 1),
    ):
        client = asked(info["device"], "h.pwrite(b'x' * 4096, 0)")
        assert client.communicate(timeout=PATIENCE)[0].strip() == "EIO"
        assert f"refused for longer than a request waits: {os.strerror(16)}" in exports.log()


def test_an_export_whose_requests_are_refused_can_be_stopped(
    exports: Exports, image: Path, running: Running
) -> None:
    info = exports.call("create", "--type", "nbd", "disk", image)
    with descriptors_left(running.keeper(), 0):
        client = asked(info["device"], "h.pwrite(b'x' * 4096, 0)")
        until(lambda: exports.show("disk")["counters"]["refusals"] >= 3, what="refusals")
        exports.call("stop", "disk", "--timeout", "600s")
    assert client.communicate(timeout=PATIENCE)[0].strip() != "done"
