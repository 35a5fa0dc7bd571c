"""Clients and holders in namespaces of their own: what they name is what is meant, or refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import HolderSpec, Return
from tests.support.service import ROOT

pytestmark = pytest.mark.kernel

PROGRAM = """
import os, sys
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import (HolderSpec, Return)
how, socket, file = sys.argv[1:4]
client = Client(socket, timeout=30)
try:
    if how == "descriptor":
        reply = client.grant([os.open(file, os.O_RDWR)])
    elif how == "pid":
        reply = client.grant(path=file, holder=HolderSpec(pid=os.getpid()))
    else:
        reply = client.grant(path=file)
except Refusal as refusal:
    sys.exit(f"{refusal.code}: {refusal.message}")
print(reply.seal.file.inode, flush=True)
for fd in reply.fds:
    os.close(fd)
"""


def elsewhere(how: str, socket: str, file: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A client that `command` puts into other namespaces."""
    return subprocess.run(
        [*command, sys.executable, "-c", PROGRAM, how, socket, file],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def shell(line: str) -> tuple[str, ...]:
    return ("unshare", "--mount", "sh", "-ec", f'{line}; exec "$@"', "sh")


@pytest.mark.parametrize("how", ["descriptor", "path"])
def test_a_client_with_a_mount_namespace_of_its_own(
    client: Client, socket: str, file: Path, how: str
) -> None:
    done = elsewhere(how, socket, file, "unshare", "--mount")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == file.stat().st_ino


def test_a_descriptor_through_a_bind_mount_of_its_own(
    client: Client, socket: str, file: Path, tmp_path: Path
) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    command = shell(f"mount --bind {file.parent} {bound}")
    done = elsewhere("descriptor", socket, bound / file.name, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == file.stat().st_ino


def test_a_path_that_is_another_file_there(socket: str, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    done = elsewhere("path", socket, file, *shell(f"mount --bind {other} {file}"))
    assert done.stderr.startswith("outside-roots: ")
    assert "another file" in done.stderr


def test_a_path_that_is_no_file_there(socket: str, file: Path) -> None:
    done = elsewhere("path", socket, file, *shell(f"mount -t tmpfs none {file.parent}"))
    assert done.stderr.startswith("outside-roots: ")


def test_a_pid_of_another_pid_namespace(client: Client, socket: str, file: Path) -> None:
    done = elsewhere("pid", socket, file, "unshare", "--pid", "--fork", "--mount-proc")
    assert done.stderr.startswith("bad-request: ")
    assert "pidfd" in done.stderr
    with subprocess.Popen(["sleep", "60"]) as child:  # one of this namespace will do
        reply = client.grant(path=str(file), holder=HolderSpec(pid=child.pid))
        assert reply.seal.holder.pid == child.pid
        client.call(Return, seal=reply.seal.id)
        child.kill()


def test_a_descriptor_of_a_process_in_a_container(client: Client, file: Path) -> None:
    line = f"exec 9<>{file}; echo ready; exec sleep 60"
    command = ["unshare", "--mount", "bash", "-c", line]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        reply = client.grant(kind="shared", holder=HolderSpec(pid=holder.pid, fd=9))
        assert reply.seal.file.inode == file.stat().st_ino
        client.call(Return, seal=reply.seal.id)
        holder.kill()
