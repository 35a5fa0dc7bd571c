"""Nothing is left of what the whole machine has: files (ENFILE), or memory of a control group.

Two tests of tests/hostile/test_exhaustion.py need CAP_SYS_RESOURCE, which a host may not give; the
third changes a setting of the whole machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from tests.hostile import test_exhaustion as elsewhere
from tests.hostile.conftest import file, place  # noqa: F401
from tests.hostile.test_exhaustion import (
    HANG,
    cut,
    granted,
    own,  # noqa: F401
    reads,
)
from tests.hostile.users import NOBODY, process
from tests.lab.pmem import mounted_dax
from tests.support.service import Running
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

test_the_keeper_at_its_limit_of_memory = elsewhere.test_the_keeper_at_its_limit_of_memory
test_the_service_is_killed_at_its_limit_of_memory = (
    elsewhere.test_the_service_is_killed_at_its_limit_of_memory
)

FILE_MAX = Path("/proc/sys/fs/file-max")


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    with mounted_dax("xfs") as made:
        made.chmod(0o777)
        yield made


@contextmanager
def no_files() -> Iterator[None]:
    """The kernel opens no further file for whoever has no CAP_SYS_ADMIN (fs/file_table.c,
    alloc_empty_file)."""
    before = FILE_MAX.read_text()
    FILE_MAX.write_text("16")
    try:
        yield
    finally:
        FILE_MAX.write_text(before)


def opened_by_nobody(path: Path) -> int:
    """The errno with which another user is refused, or 0."""
    ours, theirs = os.pipe()

    def told() -> None:
        try:
            os.close(os.open(path, os.O_RDONLY))
            code = 0
        except OSError as error:
            code = error.errno or -1
        os.write(theirs, bytes([code]))

    with process(told, NOBODY):
        os.close(theirs)
        with os.fdopen(ours, "rb") as answer:
            return answer.read(1)[0]


def test_no_file_is_left_on_the_machine(own: Running, file: Path) -> None:  # noqa: F811
    """Others cannot open a file; seals are granted, in force, recalled and returned as ever."""
    with Client(str(own.socket), timeout=HANG) as client:
        before = granted(client, file)
        with no_files():
            assert opened_by_nobody(file) == errno.ENFILE
            during = granted(client, file)
            intruder = cut(file)
            until(lambda: client.status().conflicts_waiting == 1, HANG)
            client.call(Return, seal=during)
            client.call(Return, seal=before)
            assert intruder.wait(HANG) == 0
        assert opened_by_nobody(file) == 0
        reads(file)
