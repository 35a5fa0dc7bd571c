"""What a thread of the kernel's NFS server meets, by a process of root's that has its name.

tests/lab/test_nfsd.py has the server itself.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Recall, Return
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

PUNCH = """
import os, sys
from sealsvc.doctor import syscalls as sc
open("/proc/self/comm", "w").write("nfsd")
try:
    sc.fallocate(os.open(sys.argv[1], os.O_RDWR), 3, 65536, 65536)
except OSError as error:
    sys.exit(error.errno)
"""


def punched(path: Path) -> int:
    """The errno that it gets, 0 for none."""
    return subprocess.run([sys.executable, "-c", PUNCH, path], check=False, timeout=60).returncode


def granted(client: Client, file: Path, **more: object) -> str:
    reply = client.grant(path=str(file), kind="shared", conflict="wait", **more)
    os.close(reply.fds[0])
    return reply.seal.id


def test_it_is_told_to_try_again_until_the_seal_is_returned(client: Client, file: Path) -> None:
    seal = granted(client, file, grace=200)
    assert punched(file) == errno.EAGAIN
    recall = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
    assert recall.seal == seal
    operation = recall.operation
    assert operation is not None
    assert (operation.name, operation.comm) == ("fallocate-punch-hole", "nfsd")
    assert punched(file) == errno.EAGAIN
    assert not [push for push in client.pushes(0.5) if isinstance(push, Recall)]
    client.call(Return, seal=seal)
    assert punched(file) == 0


def test_it_gets_an_error_that_the_server_knows(client: Client, file: Path) -> None:
    """For EBUSY it would warn in the kernel's log."""
    seal = granted(client, file, grace=0.5)
    assert punched(file) == errno.EAGAIN
    time.sleep(0.6)
    until(lambda: punched(file) == errno.ETXTBSY)
    client.call(Return, seal=seal)


def test_who_refuses_refuses_it(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared", conflict="refuse")
    os.close(reply.fds[0])
    assert punched(file) == errno.ETXTBSY
    client.call(Return, seal=reply.seal.id)
