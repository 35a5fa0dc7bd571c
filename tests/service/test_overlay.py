"""Overlays over sealed files: refused at grant, recalled when they come later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Recall, Return
from tests.support.refusals import refusal
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel, pytest.mark.overlays, pytest.mark.timeout(240)]


@pytest.fixture
def upper_file(root: Path) -> Iterator[Path]:
    for name in ("upper", "work", "lower", "merged"):
        (root / name).mkdir(exist_ok=True)
    made = root / "upper" / "file"
    made.write_bytes(os.urandom(1 << 20))
    yield made
    subprocess.run(["rm", "-rf", *(root / n for n in ("upper", "work", "lower", "merged"))])


@contextmanager
def overlay(root: Path) -> Iterator[None]:
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, root / "merged"], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", root / "merged"], check=True)


def test_an_overlays_upper_file_is_refused(client: Client, root: Path, upper_file: Path) -> None:
    with overlay(root), pytest.raises(Refusal) as caught:
        client.grant(path=str(upper_file))
    assert caught.value.code == "overlay-upper"
    assert str(root / "merged") in caught.value.message


def test_an_overlay_that_comes_later_recalls_the_seal(
    client: Client, root: Path, upper_file: Path
) -> None:
    reply = client.grant(path=str(upper_file), grace=200)
    os.close(reply.fds[0])
    with overlay(root):
        recall = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
        assert recall.seal == reply.seal.id
        assert str(root / "merged") in recall.reason
    client.call(Return, seal=reply.seal.id)


# Where the mount table's text does not tell which directory it is.


def mount_line(root: Path, upper: str = "upper", directory: str = "") -> str:
    options = f"lowerdir={root}/lower,upperdir={directory}{upper},workdir={directory}work"
    return f"cd {root}; mount -t overlay overlay -o {options},userxattr merged"


ELSEWHERE = {
    "relative": ([], ""),
    "namespace": (["unshare", "--mount"], ""),
    "user": (["unshare", "--user", "--map-root-user", "--mount"], "{root}/"),
}


@contextmanager
def overlay_elsewhere(root: Path, how: str, more: str = "") -> Iterator[None]:
    """Mounted by a process that stays, in whose mount namespace it is."""
    command, directory = ELSEWHERE[how]
    line = mount_line(root, directory=directory.format(root=root))
    wait = f"set -e; {line}; {more or ':'}; echo mounted; read line"
    process = subprocess.Popen(
        [*command, "sh", "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "mounted\n"
        yield
    finally:
        process.communicate("\n")
        if how == "relative":
            subprocess.run(["umount", root / "merged"], check=True)


@pytest.mark.parametrize("how", ELSEWHERE)
def test_refused_wherever_it_is_mounted(
    client: Client, root: Path, upper_file: Path, how: str
) -> None:
    with overlay_elsewhere(root, how):
        # Namespaces are looked for several times a second.
        until(lambda: outcome(client, upper_file) == "overlay-upper")
    until(lambda: granted(client, upper_file))


@pytest.mark.parametrize("how", ELSEWHERE)
@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_recalled_wherever_it_is_mounted(
    client: Client, root: Path, upper_file: Path, how: str, kind: str
) -> None:
    reply = client.grant(path=str(upper_file), grace=200, kind=kind)
    os.close(reply.fds[0])
    with overlay_elsewhere(root, how):
        recall = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
        assert recall.seal == reply.seal.id
    client.call(Return, seal=reply.seal.id)


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_what_is_truncated_through_it_is_noticed_at_once(
    client: Client, root: Path, upper_file: Path, kind: str
) -> None:
    """Under the accepted risk, and long before the next audit of all seals."""
    reply = client.grant(path=str(upper_file), grace=200, kind=kind)
    os.close(reply.fds[0])
    call = f"import os; os.truncate('{root}/merged/file', 4096)"  # truncate(1) opens the file
    with overlay_elsewhere(root, "user", f'python3 -I -c "{call}"'):
        pushes = client.pushes(PATIENCE)
        assert any(isinstance(push, Recall) and push.changed for push in pushes)
    client.call(Return, seal=reply.seal.id)


@pytest.mark.parametrize("how", ["namespace", "user"])
def test_an_upper_directory_that_was_renamed(
    client: Client, root: Path, upper_file: Path, how: str
) -> None:
    """Another has its name now."""
    renamed = root / "renamed"
    with overlay_elsewhere(root, how, f"mv {root}/upper {renamed}; mkdir {root}/upper"):
        try:
            until(lambda: outcome(client, renamed / upper_file.name) == "overlay-upper")
        finally:
            os.rmdir(root / "upper")
            renamed.rename(root / "upper")


def test_a_file_of_two_names_may_be_reached_by_the_other(
    client: Client, root: Path, upper_file: Path
) -> None:
    beside = root / "beside"
    os.link(upper_file, beside)
    try:
        with overlay(root):
            assert refusal(lambda: client.grant(path=str(beside))).code == "overlay-upper"
            # Of a shared seal that is a risk with a name, which was accepted.
            assert granted(client, beside, kind="shared")
        assert granted(client, beside)
    finally:
        beside.unlink()


def test_an_overlay_elsewhere_is_in_nobodys_way(
    client: Client, root: Path, upper_file: Path
) -> None:
    other = root / "other"
    other.write_bytes(os.urandom(1 << 20))
    try:
        with overlay(root):
            assert granted(client, other)
    finally:
        other.unlink()
    assert upper_file.exists()


def outcome(client: Client, file: Path, **terms: object) -> str:
    """Of a grant, which is returned at once: `granted`, or the code of its refusal."""
    try:
        reply = client.grant(path=str(file), **terms)
    except Refusal as refusal:
        return refusal.code
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)
    return "granted"


def granted(client: Client, file: Path, **terms: object) -> bool:
    return outcome(client, file, **terms) == "granted"
