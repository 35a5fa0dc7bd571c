"""libseal in programs that it does not expect: without a client, in another locale, at a limit."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.seals import List
from tests.support.service import Running
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

DECIMAL_COMMA = """
import locale, os, sys, time
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
assert locale.localeconv()["decimal_point"] == ","
from sealsvc.client.ring import RingClient
fd = os.open(sys.argv[2], os.O_RDWR)
client = RingClient(sys.argv[1], timeout=120)
client.register(fd, grace=2.5)
print("registered", flush=True)
time.sleep(600)
"""


def test_why_an_opening_failed(tmp_path: Path) -> None:
    """There is no client that could have the text."""
    missing = str(tmp_path / "none.sock")
    options = ffi.new(
        "struct seal_options *",
        {
            "size": ffi.sizeof("struct seal_options"),
            "socket": (name := ffi.new("char[]", missing.encode())),
        },
    )
    out = ffi.new("struct seal_client **")
    assert lib.seal_open(out, options) < 0
    assert out[0] == ffi.NULL
    assert missing in ffi.string(lib.seal_failure(ffi.NULL)).decode()
    assert name
    with pytest.raises(OSError, match=r"none\.sock"):
        RingClient(missing)


def test_a_decimal_comma(running: Running, file: Path, tmp_path: Path) -> None:
    made = tmp_path / "de_DE.UTF-8"
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("there is nothing to make a locale of (package locales)")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", made], check=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", DECIMAL_COMMA, running.socket, file],
        env=os.environ | {"LOCPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "registered\n"
        with Client(str(running.socket), timeout=PATIENCE) as client:
            [seal] = client.call(List).result.seals  # type: ignore[union-attr]
        assert seal.grace == 2.5
    finally:
        holder.kill()
        holder.communicate()


def test_no_number_left_for_a_descriptor(running: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What an opening takes before its answer comes: the epoll set, an eventfd, the socket.
    for room in range(64):  # some numbers in it may be taken
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + room, hard))
        try:
            RingClient(str(running.socket), timeout=PATIENCE).close()
            break
        except OSError as error:
            said = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        assert "Too many open files" in said
    else:
        pytest.fail("an opening takes more descriptors than it should")
