"""Overlays of unprivileged users over sealed files, where policy does not accept that risk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.enforce.overlay_mounts import RISK, _none_is_mounted
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Status
from sealsvc.runtime.config import RISKS as ALL
from tests.kernel.test_keeper import keepers_of
from tests.service.test_environment import alarms
from tests.support.overlay_layers import NOBODY, OWN_NAMESPACE, layers, options
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running, serving
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel, pytest.mark.overlays, pytest.mark.timeout(240)]

REST = f"accept_risks = {sorted(ALL - {'all', RISK})}\n"


@pytest.fixture
def upper(root: Path) -> Iterator[Path]:
    """A file that anybody may write, in a directory of nobody's."""
    with layers(root / "overlaid") as top:
        made = top / "upper" / "file"
        made.write_bytes(os.urandom(1 << 20))
        os.chown(made, NOBODY, NOBODY)
        yield made


def truncates(upper: Path, *who: str) -> subprocess.CompletedProcess[str]:
    """Through an overlay over the file's directory."""
    top = upper.parents[1]
    mount = f"mount -t overlay over -o {options(top, userxattr=bool(who))} {top}/merged"
    line = f"{mount} && truncate -s 4096 {top}/merged/file"
    return subprocess.run([*who, "sh", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_an_unprivileged_overlay_is_refused(
    root: Path, upper: Path, tmp_path: Path, kind: str
) -> None:
    with serving(tmp_path, [root], REST) as socket, Client(socket) as client:
        reply = client.grant(path=str(upper), kind=kind)
        assert RISK not in reply.seal.accepted_risks
        os.close(reply.fds[0])
        tried = truncates(upper, *OWN_NAMESPACE)
        assert "ermission denied" in tried.stderr
        assert upper.stat().st_size == 1 << 20
        assert sorted(os.listdir(upper.parent)) == ["file"]  # directories are read as ever
        client.call(Return, seal=reply.seal.id)
        until(lambda: any("1 overlays of unprivileged" in told for told in alarms(socket)))


def test_it_is_refused_while_no_service_runs(root: Path, upper: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, [root], REST)
    running.start()
    try:
        running.ready()
        with Client(str(running.socket)) as client:
            os.close(client.grant(path=str(upper), kind="exclusive").fds[0])
            running.kill()
            assert truncates(upper, *OWN_NAMESPACE).returncode
            assert upper.stat().st_size == 1 << 20
    finally:
        running.start()
        running.ready()
        running.end()
    assert not truncates(upper, *OWN_NAMESPACE).returncode  # nothing is left of it
    assert upper.stat().st_size == 4096


def test_a_keeper_that_is_stopped_stops_nobody_who_asks(root: Path, tmp_path: Path) -> None:
    """Though it is asked now and then how many it refused; it answers nothing before the end."""
    with serving(tmp_path, [root], REST) as socket, Client(socket, timeout=PATIENCE) as client:
        (keeper,) = keepers_of(str(tmp_path / "keeper.sock"))
        os.kill(keeper, signal.SIGSTOP)
        try:
            for _ in range(14):
                time.sleep(0.5)
                client.call(Status)
        finally:
            os.kill(keeper, signal.SIGCONT)


def test_an_administrators_overlay_is_not(root: Path, upper: Path, tmp_path: Path) -> None:
    with serving(tmp_path, [root], REST):
        assert not truncates(upper).returncode
        subprocess.run(["umount", upper.parents[1] / "merged"], check=True)


def test_where_it_is_accepted_the_seal_says_so(root: Path, upper: Path, tmp_path: Path) -> None:
    with serving(tmp_path, [root], RISKS) as socket, Client(socket) as client:
        for kind in ("exclusive", "shared"):
            reply = client.grant(path=str(upper), kind=kind)
            assert RISK in reply.seal.accepted_risks
            os.close(reply.fds[0])
            client.call(Return, seal=reply.seal.id)
        assert not truncates(upper, *OWN_NAMESPACE).returncode


def test_on_a_file_system_below_no_root_it_must_be_accepted(
    root: Path, upper: Path, tmp_path: Path
) -> None:
    """An overlay may have been mounted there before the service came, and hidden since."""
    if _none_is_mounted():
        pytest.skip("it is known here that there is no overlay")
    with (
        serving(tmp_path, [tmp_path], REST) as socket,
        Client(socket) as client,
        upper.open("r+b") as file,
    ):
        refused = refusal(lambda: client.grant(fds=[file.fileno()], kind="exclusive"))
        assert refused.code == "risk-not-accepted"
        assert refused.details["risks"] == [RISK]
        assert "policy.roots" in refused.message
    until(lambda: not (tmp_path / "keeper.sock").exists())


OPENED_AND_RENAMED = """
import os, subprocess, sys
top = sys.argv[1]
layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work,userxattr"
subprocess.run(["mount", "-t", "overlay", "over", "-o", layers, f"{top}/merged"], check=True)
file = os.open(f"{top}/merged/file", os.O_PATH)
os.rename(f"{top}/upper/file", f"{top}/renamed")
print("renamed", flush=True)
sys.stdin.readline()
os.truncate(f"/proc/self/fd/{file}", 4096)
"""


def test_an_overlay_from_before_by_which_a_renamed_file_may_be_open(
    root: Path, upper: Path, tmp_path: Path
) -> None:
    top = upper.parents[1]
    command = [*OWN_NAMESPACE, "python3", "-I", "-c", OPENED_AND_RENAMED, str(top)]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as mounter,
        serving(tmp_path, [root], REST) as socket,
        Client(socket) as client,
    ):
        assert mounter.stdout is not None
        assert mounter.stdout.readline() == "renamed\n"
        path = str(top / "renamed")
        for kind in ("exclusive", "shared"):
            assert (
                refusal(lambda kind=kind: client.grant(path=path, kind=kind)).code
                == "overlay-upper"
            )  # type: ignore[misc]
        mounter.communicate("\n")
        assert mounter.returncode == 0
        assert os.stat(path).st_size == 4096  # it could, indeed

        def granted() -> bool:
            try:
                reply = client.grant(path=path, kind="exclusive")
            except Refusal:
                return False
            os.close(reply.fds[0])
            client.call(Return, seal=reply.seal.id)
            return True

        until(granted)
