"""The peer: the kernel's own pNFS block-layout server, and its client, on one machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Programs of Debian's nfs-kernel-server and nfs-common.
PROGRAMS = ("exportfs", "nfsdcld", "rpc.mountd", "rpc.nfsd", "blkmapd", "mount.nfs4")

_STATE = Path("/var/lib/nfs")


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"


@contextmanager
def exported(root: Path, client: Path, layouts: bool = True) -> Iterator[None]:
    """Export `root`, with block layouts or without, and mount it on `client`."""
    _run("modprobe", "-a", "nfsd", "nfs", "nfsv4", "blocklayoutdriver")
    for name in ("rpc_pipefs", "v4recovery", "sm", "nfsdcld"):
        (_STATE / name).mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    _run("mount", "-t", "rpc_pipefs", "rpc_pipefs", str(_STATE / "rpc_pipefs"))
    Path("/run/rpc_pipefs").symlink_to(_STATE / "rpc_pipefs")
    options = "rw,no_root_squash,insecure,fsid=0,no_subtree_check"
    options += ",pnfs" if layouts else ",no_pnfs"
    Path("/etc/exports").write_text(f"{root} 127.0.0.1({options})\n")
    _run("exportfs", "-ra")
    _run("nfsdcld")
    _run("rpc.mountd")
    _run("rpc.nfsd", "-N", "3", "4")
    client.mkdir()
    if layouts:
        _run("blkmapd")
        time.sleep(2)  # it looks for devices before it answers for them
    _run("mount", "-t", "nfs4", "-o", "vers=4.2,sec=sys", "127.0.0.1:/", str(client))
    try:
        yield
    finally:
        _run("umount", str(client))
        _run("rpc.nfsd", "0")
        _run("exportfs", "-ua")


def counted(operation: str) -> int:
    """How often the client has sent an operation, such as LAYOUTRETURN."""
    stats = Path("/proc/self/mountstats").read_text()
    found = re.search(rf"^\s*{operation}: (\d+)", stats, re.M)
    return int(found[1]) if found else 0
