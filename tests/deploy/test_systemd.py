"""The units under a real systemd, on a kernel with everything: in the lab."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from tests.lab.pmem import mounted_dax
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
DOCS = (ROOT / "docs" / "deploy.md").read_text()
BIN = Path(sys.executable).parent
WATCHDOG = 10  # seconds; the unit's own are too many to wait for
JOURNAL = Path("/run/log/journal")

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]


# A seal by way of a ring, and somebody who is in its way.
RING = """
import os, select, subprocess, sys
sys.path.insert(0, "ROOT")
from sealsvc.client.ring import RingClient
fd = os.open(sys.argv[1], os.O_RDWR)
with RingClient(timeout=120) as client:
    seal = client.grant(client.register(fd), 0, 4096)
    assert seal.valid
    intruder = subprocess.Popen(["truncate", "--size", "0", sys.argv[1]])
    while not (news := client.dispatch()):
        assert select.select([client], [], [], 120)[0]
    assert news[0].kind == "recall"
    assert not seal.valid
    print("recalled")
    seal.refresh()
    seal.give_back()
    assert intruder.wait(120) == 0
    print("returned")
""".replace("ROOT", str(ROOT))

LIST = """
import json, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.settimeout(60)
    sock.connect("/run/sealsvc/control.sock")
    sock.send(b'{"v": 1, "id": 1, "op": "list"}')
    print(*(seal["id"] for seal in json.loads(sock.recv(1 << 20))["result"]["seals"]))
"""

SOMEBODY = 12345
ASK = """
import socket
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(30)
    sock.connect("/run/sealsvc-api.sock")
    request = "DELETE /v1/seals/0123456789abcdef01234567 HTTP/1.1", "Host: localhost", "", ""
    sock.sendall("\\r\\n".join(request).encode())
    print(sock.recv(4096).split()[1].decode())
"""


class Machine:
    """systemd with these units and nothing else, the first process of a pid namespace."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str | Path) -> str:
        process = self.start(*command)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{command}: {said}\n{log()}"
        return said

    def show(self, name: str) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, "sealsvc.service").strip()

    def seals(self) -> list[str]:
        """Their ids. Asked for without sealctl, which takes seconds to start here."""
        return self.run("/usr/bin/python3", "-I", "-c", LIST).split()


def log(*matches: str) -> str:
    """What the journal has of our units: their lines, or those with these fields."""
    units = () if matches else ("--unit=sealsvc*",)
    return subprocess.run(
        ["journalctl", "--quiet", "-o", "cat", f"--directory={JOURNAL}", *units, *matches],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    ).stdout


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it never came true\n{log()}"
        time.sleep(0.1)


@contextmanager
def systemd(directory: Path, root: Path) -> Iterator[Machine]:
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        (directory / unit.name).write_text(unit.read_text())
    for unit in Path("/lib/systemd/system").glob("systemd-journald*"):
        (directory / unit.name).write_bytes(unit.read_bytes())
    (directory / "sealsvc.service.d").mkdir()
    (directory / "sealsvc.service.d/test.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG}\n")
    # The API sees nothing of /tmp and /home, where this tree may be.
    (directory / "sealsvc-api.service.d").mkdir()
    visible = f"[Service]\nBindReadOnlyPaths={ROOT}\n"
    (directory / "sealsvc-api.service.d/test.conf").write_text(visible)
    for name in ("sealsvc", "sealsvc-api"):
        program = Path("/usr/bin", name)
        program.unlink(missing_ok=True)
        program.symlink_to(BIN / name)
    for target in ("sysinit", "basic", "sockets", "local-fs", "multi-user", "shutdown", "default"):
        (directory / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    shutil.rmtree(JOURNAL, ignore_errors=True)
    Path("/run/systemd/private").unlink(missing_ok=True)
    Path("/etc/sealsvc").mkdir(exist_ok=True)
    Path("/etc/sealsvc/sealsvc.toml").write_text(
        f'[policy]\nroots = ["{root}"]\naccept_risks = ["all"]\n'
    )
    # Its first process sees what is mounted now, and what it mounts is its own.
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "/lib/systemd/systemd"]
    with subprocess.Popen(
        [*command, "--system", "--unit=basic.target", "--log-target=console"],
        env={"PATH": os.environ["PATH"], "container": "lab", "SYSTEMD_UNIT_PATH": str(directory)},
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            until(lambda: Path("/run/systemd/private").exists())
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            machine = Machine(int(children.split()[0]))
            machine.run("systemctl", "start", "systemd-journald.service")
            yield machine
        finally:
            process.kill()


def state_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def named(name: str) -> int:
    """The one process of this name, as seen from here."""
    found = [
        int(comm.parent.name)
        for comm in Path("/proc").glob("[0-9]*/comm")
        if comm.read_text() == f"{name}\n"
    ]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def allowed() -> int:
    """The unit's bounding set as the kernel writes it."""
    numbers = {"dac_override": 1, "fowner": 3, "kill": 5, "sys_ptrace": 19, "sys_admin": 21}
    numbers |= {"sys_resource": 24, "lease": 28}
    text = (UNITS / "sealsvc.service").read_text()
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    names = [name.removeprefix("CAP_").lower() for line in lines for name in line.split()]
    return sum(1 << numbers[name] for name in names)


def test_the_service_under_its_unit(tmp_path: Path) -> None:
    with mounted_dax("xfs") as root, systemd(tmp_path, root) as machine:
        file = root / "file"
        file.write_bytes(os.urandom(1 << 20))
        os.sync()

        # Nobody started the service: the first client does, through the socket.
        machine.run("systemctl", "start", "sealsvc.socket")
        status = machine.run(BIN / "sealctl", "status")
        assert re.search(r"enforcer fanotify +available", status), status
        # (bpf is not for a pid namespace: test_capabilities.py has it.)
        assert machine.show("ActiveState") == "active"

        # Confined as it says, the keeper too; and among the host's mounts.
        keeper = named("sealsvc-keeper")
        service = named("sealsvc")
        for pid in (keeper, service):
            found = state_of(pid)
            assert int(found["CapBnd"], 16) == allowed()
            assert int(found["CapEff"], 16) == allowed()
            assert found["NoNewPrivs"] == "1"
            assert found["Seccomp"] == "2"
            assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(f"/proc/{machine.pid}/ns/mnt")
        assert Path(f"/proc/{keeper}/oom_score_adj").read_text() == "-1000\n"
        assert Path("/var/lib/sealsvc").stat().st_mode & 0o7777 == 0o700

        # A seal is held, and outlives a restart and a death of the service.
        deaf = "trap '' TERM; sleep 1000"
        options = ["--fence", "kill", "--grace", "1"]
        hold = machine.start(BIN / "sealctl", "hold", file, *options, "--", "sh", "-c", deaf)
        until(lambda: len(machine.seals()) == 1 or hold.poll() is not None)
        assert hold.poll() is None, hold.communicate()
        (seal,) = machine.seals()
        machine.run("systemctl", "restart", "sealsvc.service")
        assert machine.seals() == [seal]
        os.kill(named("sealsvc"), signal.SIGKILL)
        assert machine.seals() == [seal]
        until(lambda: machine.show("NRestarts") == "1")
        assert machine.show("ActiveState") == "active"
        assert named("sealsvc-keeper") == keeper

        # A watchdog that is not petted is a service that hangs. (So far it was petted.)
        os.kill(named("sealsvc"), signal.SIGSTOP)
        until(lambda: machine.show("NRestarts") == "2")
        assert machine.seals() == [seal]
        assert machine.show("ActiveState") == "active"

        # A conflict waits; the holder misses its deadline and is fenced; the conflict goes on.
        intruder = machine.start("truncate", "--size", "4096", file)
        assert intruder.wait(PATIENCE) == 0
        assert hold.wait(PATIENCE) == 128 + signal.SIGKILL
        assert file.stat().st_size == 4096
        for process in (hold, intruder):
            assert process.stdout
            process.stdout.close()
        # What it logs has fields (sealsvc/runtime/journald.py).
        assert "serving on" in log("LOGGER=sealsvc.service.daemon")

        # Rings are the keeper's, and so under the unit's filter of system calls.
        told = machine.run(sys.executable, "-c", RING, file)
        assert told == "recalled\nreturned\n"

        # Stopped with nothing sealed, nothing is left; and the keeper's end was its own.
        until(lambda: not machine.seals())
        machine.run("systemctl", "stop", "sealsvc.socket", "sealsvc.service")
        until(lambda: not Path("/run/sealsvc/keeper.sock").exists())
        assert not Path("/run/sealsvc/control.sock").exists()
        assert machine.show("Result") == "success"
        assert "Traceback" not in log(), log()


def test_the_api_under_its_unit(tmp_path: Path) -> None:
    subprocess.run(["systemd-sysusers", UNITS / "sealsvc.sysusers"], check=True, timeout=PATIENCE)
    user = pwd.getpwnam("sealsvc-api").pw_uid
    with mounted_dax("xfs") as root, systemd(tmp_path, root) as machine:
        Path("/etc/sealsvc/sealsvc.toml").write_text(
            f'[policy]\nroots = ["{root}"]\noperators = [0, "sealsvc-api"]\n'
        )
        token = secrets.token_urlsafe(32)
        principals = Path("/etc/sealsvc/principals.toml")
        principals.write_text(
            f'[principal.me]\nrole = "viewer"\nscopes = ["/"]\n'
            f'tokens = ["sha256:{sha256(token.encode()).hexdigest()}"]\n'
            f'[principal.somebody]\nrole = "viewer"\nscopes = ["/"]\nusers = [{SOMEBODY}]\n'
        )
        subprocess.run(
            ["systemd-tmpfiles", "--create", UNITS / "sealsvc.tmpfiles"], check=True, timeout=60
        )
        machine.run("systemctl", "start", "sealsvc.socket", "sealsvc-api.service")
        until(lambda: "listening on" in log())
        found = state_of(named("sealsvc-api"))
        assert found["Uid"].split() == [str(user)] * 4
        assert {int(found[name], 16) for name in ("CapBnd", "CapEff", "CapAmb")} == {0}
        assert found["Seccomp"] == "2"
        # It answers on the network of this host, to those it knows.
        request = urllib.request.Request("http://127.0.0.1:8377/v1/seals")
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(request, timeout=PATIENCE)
        refused.value.close()
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert json.load(answer)["seals"] == []
        # And on its UNIX socket, where the kernel says who asks.
        assert [asked_by(machine, uid) for uid in (SOMEBODY, SOMEBODY + 1)] == [403, 401]
        assert "/v1/seals" in log("SEALSVC_PRINCIPAL=somebody")
        # With the drop-in that docs/deploy.md has, it calls a collector.
        with socket.create_server(("127.0.0.1", 0)) as collector:
            collector.settimeout(PATIENCE)
            drop_in = tmp_path / "sealsvc-api.service.d/traces.conf"
            drop_in.write_text(tracing(collector.getsockname()[1]))
            machine.run("systemctl", "daemon-reload")
            machine.run("systemctl", "restart", "sealsvc-api.service")
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                assert answer.status == 200
            peer, _ = collector.accept()
            with peer:
                assert peer.recv(65536).startswith(b"POST /v1/traces ")
        machine.run("systemctl", "stop", "sealsvc-api.socket", "sealsvc-api.service")
        assert not Path("/run/sealsvc-api.sock").exists()
        machine.run("systemctl", "stop", "sealsvc.socket", "sealsvc.service")
        assert "Traceback" not in log(), log()


def tracing(port: int) -> str:
    found = re.search(r"(?:^    .*\n)*^    PrivateNetwork=no\n(?:^    .*\n)*", DOCS, re.MULTILINE)
    assert found
    told = textwrap.dedent(found[0]).replace("192.0.2.7:4318", f"127.0.0.1:{port}")
    return told.replace("192.0.2.7", "127.0.0.1")


def asked_by(machine: Machine, uid: int) -> int:
    """The status that a user is answered with."""
    as_user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return int(machine.run(*as_user, "/usr/bin/python3", "-I", "-c", ASK))
