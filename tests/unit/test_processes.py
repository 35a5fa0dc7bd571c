"""Processes are known by their pidfd, whoever asks and whosever they are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.linux.processes import by_pidfd

NOBODY = 65534
ASK = """
import os, sys
from sealsvc.linux.processes import by_pidfd
os.setuid(int(sys.argv[2]))
print(by_pidfd(os.pidfd_open(int(sys.argv[1]))).holder.pid)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_one_of_another_user_is_known() -> None:
    command = [sys.executable, "-c", ASK, str(os.getpid()), str(NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{os.getpid()}\n", done.stderr


def test_one_that_has_exited_is_not() -> None:
    with subprocess.Popen(["true"]) as process:
        pidfd = os.pidfd_open(process.pid)
    with pytest.raises(Refusal) as refused:
        by_pidfd(pidfd)
    assert refused.value.code == "no-such-holder"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(pidfd)
