"""The client installs alone: of its wheel and msgspec, nothing else is needed."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import msgspec
import pytest

from deploy.client_wheel import build
from sealsvc.client import methods_source as methods
from sealsvc.protocol.system import ServiceStatus
from tests.api.running import service

ROOT = Path(__file__).parents[2]

SCRIPT = """
import asyncio, sys
from sealsvc.client import AsyncClient, Client
from sealsvc.core.errors import Refusal
import sealsvc.client.held
with Client(sys.argv[1]) as client:
    print(client.status().version, len(client.seals(limit=5).seals))
    try:
        client.show("f" * 24)
    except Refusal as refusal:
        print(refusal.code)
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        print((await client.filesystems()).filesystems[0].mount)
asyncio.run(main())
print(sorted(name for name in sys.modules if name in ("numpy", "click", "rich", "_cffi_backend")))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_what_it_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        told = message_from_string(opened.read(metadata).decode())
    assert told["Name"] == "sealsvc-client"
    assert [line.split(">")[0] for line in told.get_all("Requires-Dist")] == ["msgspec"]
    assert "sealsvc/py.typed" in names
    assert all(name.endswith((".py", "py.typed")) for name in names if ".dist-info" not in name)


def test_the_same_sources_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


def test_it_works_with_msgspec_alone(wheel: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, alone, wheel], check=True, timeout=120, capture_output=True)
    shutil.copytree(Path(msgspec.__file__).parent, alone / "msgspec")
    with service(tmp_path, "--sim"):
        done = subprocess.run(
            [sys.executable, "-S", "-c", SCRIPT, tmp_path / "control.sock"],
            env={"PYTHONPATH": str(alone)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    first, refused, mount, heavy = done.stdout.splitlines()
    assert first == "0.1.0 0"
    assert (refused, mount, heavy) == ("no-such-seal", "/sim", "[]")


def test_the_methods_are_those_of_the_messages() -> None:
    """Or: python -m sealsvc.client.methods_source"""
    assert ast.dump(ast.parse(methods.FILE.read_text())) == ast.dump(ast.parse(methods.source()))
    assert f"-> system.{ServiceStatus.__name__}:" in methods.source()
