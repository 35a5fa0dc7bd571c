"""Mount namespaces of the whole machine: found, watched, and let go."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.linux import native
from sealsvc.linux.namespaces import MountNamespaces
from sealsvc.linux.overlays import Overlay
from tests.support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture
def namespaces() -> Iterator[MountNamespaces]:
    made = MountNamespaces()
    yield made
    made.stop()


class Heard:
    """When mounts changed (seconds of CLOCK_MONOTONIC), and the overlays that were found."""

    def __init__(self) -> None:
        self.changes: list[float] = []
        self.overlays: list[Overlay] = []

    def mounts_changed(self) -> None:
        self.changes.append(time.monotonic())

    def overlay_found(self, overlay: Overlay) -> None:
        self.overlays.append(overlay)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """One that says when it is ready, and waits."""
    line = "echo ready; read line"
    started = subprocess.Popen(
        [*command, "sh", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == "ready\n"
        yield started
    finally:
        started.communicate("\n")


def namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def test_every_namespace_is_found_once_with_a_task_in_it() -> None:
    with process("unshare", "--mount") as child:
        found = native.mount_namespaces()
        ids = [each.id for each in found]
        assert len(ids) == len(set(ids))
        assert {namespace_of(os.getpid()), namespace_of(child.pid)} <= set(ids)
        [there] = [each for each in found if each.id == namespace_of(child.pid)]
        assert (there.task, there.whole) == (child.pid, True)


def test_a_namespace_that_only_a_thread_is_in() -> None:
    program = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
def work():
    libc.unshare(0x20000)  # CLONE_NEWNS
    print(os.stat("/proc/thread-self/ns/mnt").st_ino, flush=True)
    sys.stdin.readline()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    with subprocess.Popen(
        ["python3", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        inode = int(child.stdout.readline())
        assert inode != namespace_of(child.pid)
        [there] = [each for each in native.mount_namespaces() if each.id == inode]
        assert there.task != child.pid
        child.communicate("\n")


def test_a_task_in_a_chroot_does_not_see_all(tmp_path: Path) -> None:
    for name in ("bin", "lib", "lib64", "usr", "proc"):
        if Path("/", name).exists():
            (tmp_path / name).mkdir()
    line = "; ".join(f"mount --rbind /{p.name} {p}" for p in tmp_path.iterdir())
    command = ["unshare", "--mount", "sh", "-ec", f'{line}; exec chroot {tmp_path} "$@"', "sh"]
    with process(*command) as child:
        [there] = [e for e in native.mount_namespaces() if e.id == namespace_of(child.pid)]
        assert not there.whole


def test_one_that_comes_and_goes(namespaces: MountNamespaces, tmp_path: Path) -> None:
    """When nobody is in it any more, it is not kept: what it mounts must not stay busy."""
    namespaces.start(Heard())
    mount = ["unshare", "--mount", "sh", "-ec", f'mount -t tmpfs none {tmp_path}; exec "$@"', "sh"]
    with process(*mount) as child:
        device = os.stat(f"/proc/{child.pid}/root{tmp_path}").st_dev
        assert device != os.stat(tmp_path).st_dev
        until(lambda: device in namespaces.devices(), what="a look at its mount")
    until(lambda: device not in namespaces.devices(), what="the end of its mount")


def test_many_changes_are_told_together(namespaces: MountNamespaces, tmp_path: Path) -> None:
    heard = Heard()
    told, overlays = heard.changes, heard.overlays
    namespaces.start(heard)
    time.sleep(0.2)
    told.clear()
    overlays.clear()
    began = time.monotonic()
    for _ in range(200):
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
        subprocess.run(["umount", tmp_path], check=True)
    until(lambda: told, what="a message")
    assert len(told) <= (time.monotonic() - began) / 0.05 + 2
    assert not overlays


def test_an_overlay_in_a_namespace_of_its_own(namespaces: MountNamespaces, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    heard = Heard()
    overlays = heard.overlays
    namespaces.start(heard)
    options = f"lowerdir={tmp_path}/lower,upperdir=upper,workdir=work"
    mount = f'cd {tmp_path}; mount -t overlay o -o {options} merged; exec "$@"'
    with process("unshare", "--mount", "sh", "-ec", mount, "sh"):
        until(lambda: [o for o in overlays if o.mount.source == "o"], what="a look at the overlay")
        [found] = [o for o in overlays if o.mount.source == "o"]
        if found.upper is None:
            pytest.skip("before v6.6 an overlay with a relative upper directory does not tell")
        assert found.upper.inode == (tmp_path / "upper").stat().st_ino
