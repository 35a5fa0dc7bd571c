"""What keeps an export from waiting for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealsvc.exports.nbd import Nbd
from sealsvc.exports.protect import below
from tests.exports.exporting import Exports

pytestmark = pytest.mark.kernel

_CAP_SYS_RESOURCE = 24
_IO_FLUSHER = 0x00080000 | 0x00100000  # PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE: include/linux/sched.h


def status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def flags(task: Path) -> int:
    """Field 9 of stat (proc_pid_stat(5)); the name of a task may contain blanks."""
    return int((task / "stat").read_text().rpartition(")")[2].split()[6])


@pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}")
def test_the_memory_of_an_export(exports: Exports, image: Path) -> None:
    """Every thread of it starts no write-back that may come back to it, its memory is locked, and
    it is ended last; what cannot be had without CAP_SYS_RESOURCE is in its log."""
    with exports.serving("nbd", "disk", image, "--io", "mapped") as info:
        pid = info["pid"]
        assert int(status(pid, "VmLck")) > 0
        if int(status(os.getpid(), "CapEff"), 16) >> _CAP_SYS_RESOURCE & 1:
            tasks = [*Path(f"/proc/{pid}/task").iterdir()]
            assert len(tasks) > 1
            assert all(flags(task) & _IO_FLUSHER == _IO_FLUSHER for task in tasks)
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "-1000\n"
        else:
            assert "PR_SET_IO_FLUSHER" in exports.log()


@pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}")
def test_an_export_touches_no_file_but_its_own(exports: Exports, image: Path) -> None:
    """Of the file system that it serves from: another sealed file there may be waited for."""
    with exports.serving("nbd", "disk", image) as info:
        device = image.stat().st_dev
        found = set()
        for link in Path(f"/proc/{info['pid']}/fd").iterdir():
            opened = os.stat(link)
            if opened.st_dev == device:
                found.add(opened.st_ino)
        assert found == {image.stat().st_ino}
        maps = Path(f"/proc/{info['pid']}/maps").read_text().splitlines()
        number = f"{os.major(device):02x}:{os.minor(device):02x}"
        mapped = {int(line.split()[4]) for line in maps if line.split()[3] == number}
        assert mapped <= {image.stat().st_ino}


def test_what_a_file_system_lies_on(xfs: Path) -> None:
    """A dm export is refused whose file lies on its own device, however deep that is."""
    device = os.stat(xfs).st_dev
    loop = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file")
    found = below(device)
    assert device in found
    assert os.stat(loop.read_text().rstrip("\n")).st_dev in found
