"""bpf proves every second, in the keeper, that it refuses: also while no service lives."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.doctor import syscalls
from sealsvc.enforce import keeper_start as keepers
from sealsvc.enforce.bpf import DIRECTORY, SWITCH, BpfEnforcer
from sealsvc.enforce.bpf_canary import BpfCanary
from sealsvc.enforce.keeper import Keeper
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.seals import List, Return
from sealsvc.protocol.system import Status
from sealsvc.runtime.config import ServiceSection
from tests.lab.test_bpf import KEEP, PUNCH
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab, pytest.mark.kernel, pytest.mark.slow]

ALL = (
    lib.KEEPER_CANARY_TRUNCATE
    | lib.KEEPER_CANARY_FALLOCATE
    | lib.KEEPER_CANARY_COPY
    | lib.KEEPER_CANARY_IOCTL
    | lib.KEEPER_CANARY_ATOMIC
)


@contextmanager
def untraced() -> Iterator[None]:
    """The kernel runs no BPF programs."""
    SWITCH.write_text("0")
    try:
        yield
    finally:
        SWITCH.write_text("1")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with mounted("xfs") as point:
        yield point


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = keepers.own(str(tmp_path / "keeper.sock"))
    yield made
    made.release()
    made.close()


@pytest.fixture
def enforcer(keeper: Keeper) -> Iterator[BpfEnforcer]:
    made = BpfEnforcer(keeper)
    assert made.probe() == ""
    yield made
    made.stop()
    assert not DIRECTORY.exists()


def test_each_kind_of_program_is_tried(enforcer: BpfEnforcer, keeper: Keeper) -> None:
    assert keeper.try_canary() == (0, 0)
    with untraced():
        assert keeper.try_canary() == (1, ALL)
        assert keeper.try_canary() == (1, ALL), "one lapse, however often it is asked"
    assert keeper.try_canary() == (1, 0)
    assert enforcer.verify() == ""
    assert enforcer.missed() == 1


def test_what_no_switch_and_no_pin_shows_is_found(enforcer: BpfEnforcer, keeper: Keeper) -> None:
    """Its entry has gone from the map, as any seal's could."""
    out = ffi.new("struct seal_bpf_seal[]", 16)
    programs = enforcer._loaded
    assert lib.seal_bpf_list(programs.raw, out, 16) == 1
    assert lib.seal_bpf_take(programs.raw, ffi.addressof(out[0].file), out[0].token) == 0
    said = enforcer.verify()
    for name in ("truncate", "fallocate", "copy_file_range", "ioctl", "an atomic write"):
        assert name in said
    enforcer._canary = BpfCanary(keeper, programs)
    assert enforcer.verify() == ""


# The service


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    more = RISKS + '[enforcers]\nuse = ["bpf"]\n'
    with served(Running(tmp_path, [root], more)) as made:
        yield made


def grant(client: Client, path: Path) -> str:
    path.write_bytes(b"x" * 65536)
    os.sync()
    reply = client.grant(path=str(path), kind="shared", conflict="refuse")
    os.close(reply.fds[0])
    return str(reply.seal.id)


def connected(running: Running) -> Client:
    return Client(str(running.socket), timeout=PATIENCE)


def reason(client: Client) -> str:
    [enforcer] = client.call(Status).result.enforcers
    return str(enforcer.reason)


def test_nothing_is_granted_while_it_does_not_refuse(running: Running, root: Path) -> None:
    with connected(running) as client:
        seal = grant(client, root / "one")
        with untraced():
            with pytest.raises(Refusal) as refused:
                grant(client, root / "two")  # at once: each grant tries
            assert refused.value.code == "enforcer-unavailable"
            until(lambda: reason(client) != "", what="the canary")
        until(lambda: reason(client) == "", what="the recovery")
        assert "bpf does not enforce any more" in running.log.read_text()
        assert "bpf enforces again" in running.log.read_text()
        client.call(Return, seal=seal)


@pytest.mark.parametrize("how", ["switch", "pins"])
def test_a_lapse_while_no_service_lives_is_told_to_the_next(
    running: Running, root: Path, how: str
) -> None:
    path = root / how
    pins = Path(ServiceSection(socket=str(running.socket)).bpf_path)
    with connected(running) as client:
        seal = grant(client, path)
    running.kill()
    links = list((pins / "links").iterdir())
    try:
        assert refused(path)
        if how == "switch":
            with untraced():
                time.sleep(10.0)  # of which each second is tried
                assert not refused(path)
        else:
            subprocess.run(["rm", "-r", *links], check=True)
            until(lambda: not refused(path), what="the programs' end")
            time.sleep(10.0)  # of which each second is tried
    finally:
        running.start()
        running.ready()
    until(lambda: "bpf may have let" in running.log.read_text(), what="the alarm")
    assert refused(path)
    with connected(running) as client:
        assert [info.id for info in client.call(List).result.seals] == [seal]
        client.call(Return, seal=seal)


def refused(path: Path) -> bool:
    """A hole of one byte: it conflicts, and where it is let through changes no map."""
    fd = os.open(path, os.O_RDWR)
    try:
        syscalls.fallocate(fd, PUNCH | KEEP, 0, 1)
    except OSError as error:
        return error.errno == errno.ETXTBSY
    finally:
        os.close(fd)
    return False
