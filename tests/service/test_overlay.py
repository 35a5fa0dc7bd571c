"""Overlays over sealed files: refused at grant, recalled when they come later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.errors import Refusal
from sealsvc.messages import Recall, Return

pytestmark = pytest.mark.kernel


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
    reply = client.grant(path=str(upper_file), grace=30)
    os.close(reply.fds[0])
    with overlay(root):
        recall = next(push for push in client.pushes(10) if isinstance(push, Recall))
        assert recall.seal == reply.seal.id
        assert str(root / "merged") in recall.reason
    client.call(Return, seal=reply.seal.id)
