"""The keeper refuses overlays of unprivileged users: on any kernel, whatever enforcers it has."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sealsvc.enforce import keeper_start as keepers
from sealsvc.enforce.keeper import Keeper
from tests.support.overlay_layers import OWN_NAMESPACE, UNPRIVILEGED, layers, options
from tests.support.scratch import MiB, mounted
from tests.support.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.overlays,
    pytest.mark.skipif(os.geteuid() != 0, reason="fanotify and mounts need root"),
]


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    path = tmp_path / "keeper.sock"
    with closing(keepers.connect(str(path))) as made:
        made.own()
        yield made
        made.release()
    until(lambda: not path.exists())


@pytest.fixture
def top(xfs: Path) -> Iterator[Path]:
    with layers(xfs / "layers") as made:
        yield made


def mounts(top: Path, *who: str) -> bool:
    names = options(top, userxattr=bool(who))
    done = subprocess.run([*who, "mount", "-t", "overlay", "over", "-o", names, top / "merged"])
    return done.returncode == 0


def refuse(keeper: Keeper, directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return keeper.refuse_overlays(fd)
    finally:
        os.close(fd)


def test_an_unprivileged_users_and_no_others(keeper: Keeper, top: Path) -> None:
    assert mounts(top, *OWN_NAMESPACE), "it goes with its namespace"
    assert keeper.overlays_refused() == 0
    assert not refuse(keeper, top)
    assert refuse(keeper, top), "it was refused before"
    assert not mounts(top, *OWN_NAMESPACE)
    assert keeper.overlays_refused() == 1
    assert mounts(top), "an administrator's"
    subprocess.run(["umount", top / "merged"], check=True)
    assert keeper.overlays_refused() == 1


def test_the_mark_goes_with_the_file_system(keeper: Keeper) -> None:
    """Whose device number may be another's then."""
    for _ in range(2):
        with mounted("xfs", 512 * MiB, []) as point:
            assert not refuse(keeper, point)
            assert refuse(keeper, point)


OPENS = """
import os, sys
for _ in range(3000):
    os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY))
"""


def test_directories_are_opened_as_ever(keeper: Keeper, top: Path) -> None:
    """By many at once, who are preempted anywhere on their way into the kernel."""
    refuse(keeper, top)
    command = [*UNPRIVILEGED, "nice", "-n", "19", "python3", "-I", "-c", OPENS, str(top)]
    running = [subprocess.Popen(command) for _ in range(6)]
    assert [each.wait(PATIENCE) for each in running] == [0] * 6
    assert keeper.overlays_refused() == 0
