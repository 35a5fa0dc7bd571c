"""Devices that stop working under a file system: a grant says so, and leaves nothing armed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List, Return
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

MiB = 1 << 20
SECTORS = 512 * MiB // 512
# Not `linear`: that is for DAX, and a device that was cannot become another.
WORKS = f"0 {SECTORS} flakey /dev/pmem0 0 1000 0"
FAILS = {
    "flakey": f"0 {SECTORS} flakey /dev/pmem0 0 0 1000 1 error_writes",
    "error": f"0 {SECTORS} error",
}


def sh(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def device() -> Iterator[str]:
    sh("modprobe", "-a", "dm_mod", "dm_flakey")
    sh("dmsetup", "create", "--noudevsync", "faulty", "--table", WORKS)
    sh("dmsetup", "mknodes")
    try:
        yield "/dev/mapper/faulty"
    finally:
        sh("dmsetup", "remove", "--noudevsync", "--retry", "faulty")


def becomes(table: str) -> None:
    """What the device does from now on; nothing is written back first."""
    sh("dmsetup", "load", "faulty", "--table", table)
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", "--noudevsync", "faulty")
    sh("dmsetup", "resume", "--noudevsync", "faulty")


@contextmanager
def mounted(fstype: str, where: str, point: Path) -> Iterator[Path]:
    sh("mount", "-t", fstype, where, point)
    try:
        yield point
    finally:  # the service lets go of it soon
        unmount = ["umount", "-q", point]
        until(lambda: subprocess.run(unmount, check=False, capture_output=True).returncode == 0)


@pytest.mark.parametrize("fails", FAILS)
@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_a_device_that_fails(fstype: str, fails: str, tmp_path: Path) -> None:
    point = tmp_path / "mount"
    point.mkdir()
    running = Running(tmp_path, [point], RISKS)
    with device() as where:
        sh(f"mkfs.{fstype}", "-q", "-f" if fstype == "xfs" else "-F", where)
        with mounted(fstype, where, point):
            file = point / "file"
            file.write_bytes(os.urandom(MiB))
            sh("sync", file)
            running.start()
            running.ready()
            try:
                fails_and_says_so(running, file, FAILS[fails])
            except BaseException:
                running.end()
                raise
            finally:
                becomes(WORKS)
        try:
            with mounted(fstype, where, point):
                with Client(str(running.socket), timeout=PATIENCE) as client:
                    wanted = ["allocate", "convert"]
                    reply = client.grant(path=str(file), kind="shared", prepare=wanted)
                    os.close(reply.fds[0])
                    client.call(Return, seal=reply.seal.id)
                running.stop()
                until(lambda: not (running.directory / "keeper.sock").exists())
        finally:
            running.end()


def fails_and_says_so(running: Running, file: Path, table: str) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        with file.open("r+b") as opened:
            opened.write(os.urandom(MiB // 2))  # which is not on the device yet
        becomes(table)
        refused = refusal(lambda: client.grant(path=str(file), kind="shared"))
        assert refused.code == "io-error", refused
        assert "fsync" in refused.message
        assert refused.details["errno"] == 5
        assert client.call(List).result.seals == []
        # Nothing holds an intruder: it fails at the device, or goes through, but does not wait.
        punch = ["fallocate", "--punch-hole", "--offset", "0", "--length", "65536", file]
        subprocess.run(punch, check=False, capture_output=True, timeout=PATIENCE)
