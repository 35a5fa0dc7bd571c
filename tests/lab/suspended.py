"""In the lab: a seal with a ttl, and a recall with a deadline, through a suspend.

`python -m tests.lab.suspended` says what it saw on the console, and turns the machine off: 9p,
which its root is on, does not come back from a suspend. So everything that is needed afterwards is
used once before. pm_test=core goes all the way of a suspend to memory, timekeeping included, but
for the firmware: the processor waits `pm_test_delay` seconds instead.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from sealsvc.client import Client
from sealsvc.protocol.seals import RecallSeals, SealInfo, Show
from tests.lab.dax_files import make
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running

MiB = 1 << 20
ASLEEP, TTL = 50, 45.0
POLICY = RISKS + "courtesy = 0\n"
MLOCK_ALL = 3  # MCL_CURRENT | MCL_FUTURE


def main() -> None:
    console = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
    off = os.open("/proc/sysrq-trigger", os.O_WRONLY)
    with mounted_dax("xfs") as point:
        try:
            told = _told(point)
        except BaseException:  # whatever it is, the test is to see it
            told = f"failed: {traceback.format_exc()}"
        os.write(console, f"suspend: {told}\n".encode())
        os.write(off, b"o")
        time.sleep(60)


def _told(point: Path) -> str:
    running = Running(Path(tempfile.mkdtemp()), [point], POLICY)
    running.start()
    running.ready()
    client = Client(str(running.socket))
    before, file = make(point / "before", MiB), make(point / "file", MiB)
    _through(client, before, 0.5, time.sleep)
    ctypes.CDLL(None).mlockall(MLOCK_ALL)
    return _through(client, file, TTL, lambda _: _suspend())


def _through(
    client: Client, file: Path, seconds: float, pass_time: Callable[[float], object]
) -> str:
    """What became of two seals, and how much time has passed by either clock."""
    leased, recalled = (
        _sealed(client, file, offset=at, length=4096, fence="none", **terms)
        for at, terms in ((0, {"ttl": seconds}), (4096, {"grace": seconds}))
    )
    client.call(RecallSeals, seal=recalled)
    boot, monotonic = time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
    pass_time(seconds)
    while _state(client, leased) != "expired" or not _overdue(client, recalled):
        assert time.monotonic() < monotonic + seconds + 60, "nothing came of it"
        time.sleep(0.1)
    boot, monotonic = time.clock_gettime(time.CLOCK_BOOTTIME) - boot, time.monotonic() - monotonic
    return f"expired and overdue after boottime={boot:.1f} monotonic={monotonic:.1f}"


def _sealed(client: Client, file: Path, **terms: object) -> str:
    reply = client.grant(path=str(file), kind="shared", **terms)
    os.close(reply.fds[0])
    return reply.seal.id


def _shown(client: Client, seal: str) -> SealInfo:
    return client.call(Show, seal=seal).seal


def _state(client: Client, seal: str) -> str:
    return _shown(client, seal).state


def _overdue(client: Client, seal: str) -> bool:
    return any(step.step == "overdue" for step in _shown(client, seal).ladder)


def _suspend() -> None:
    Path("/sys/module/suspend/parameters/pm_test_delay").write_text(str(ASLEEP))
    Path("/sys/power/pm_test").write_text("core")
    Path("/sys/power/state").write_text("mem")


if __name__ == "__main__":
    main()
