"""The kernel's SMB server (ksmbd), and its client, on one machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CONFIG = """[global]
	bind interfaces only = yes
	interfaces = lo
	map to guest = bad user
[share]
	path = {root}
	read only = no
	guest ok = yes
	force user = root
"""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def _done(*command: str) -> None:
    done = _run(*command)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"


@contextmanager
def exported(root: Path, client: Path, place: Path) -> Iterator[None]:
    """Export `root`, and mount it on `client`; `place` is a directory for the server's files."""
    if _run("modprobe", "-a", "ksmbd", "cifs").returncode:
        pytest.skip("the kernel has no ksmbd, or no cifs")
    config, users = place / "smb.conf", place / "users"
    config.write_text(_CONFIG.format(root=root))
    users.touch()  # of whom there are none: clients are guests
    try:
        server = subprocess.Popen(["ksmbd.mountd", "-n", "-u", users, "-c", config])
    except FileNotFoundError:
        pytest.skip("no ksmbd.mountd (Debian: ksmbd-tools)")
    client.mkdir()
    try:
        _mount(client)
        try:
            yield
        finally:
            _done("umount", str(client))
    finally:
        _run("ksmbd.control", "-s")
        server.wait(120)


def _mount(client: Path) -> None:
    """Nothing tells when the server listens. The client keeps no data and no attributes."""
    options = "ip=127.0.0.1,user=guest,pass=,vers=3.1.1,cache=none,actimeo=0"
    command = ("mount", "-i", "-t", "cifs", "-o", options, "//127.0.0.1/share", str(client))
    for _ in range(60):
        done = _run(*command)
        if done.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"{' '.join(command)}: {done.stderr}")
