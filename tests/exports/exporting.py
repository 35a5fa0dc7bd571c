"""Exports as tests make them: by `sealctl export`, in a runtime directory of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealsvc.exports.runtime import Runtime
from tests.support.service import ROOT
from tests.support.waiting import PATIENCE

RELOCATE = ROOT / "tests" / "exports" / "relocate.py"


class Exports:
    """`sealctl export` against one service and one runtime directory."""

    def __init__(self, directory: Path, socket: Path | str) -> None:
        self.directory, self.socket = directory, socket
        self.environment = os.environ | {
            "SEALSVC_EXPORTS": str(directory),
            "SEALSVC_SOCKET": str(socket),
            "PYTHONPATH": str(ROOT),
        }

    def ask(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sealsvc.cli.sealctl", "export", *map(str, arguments)],
            env=self.environment,
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )

    def call(self, *arguments: object) -> dict[str, Any]:
        done = self.ask(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr + self.log()
        return json.loads(done.stdout) if done.stdout else {}

    def map(self, *arguments: object) -> str:
        """`sealctl map`."""
        return subprocess.run(
            [sys.executable, "-m", "sealsvc.cli.sealctl", "map", *map(str, arguments)],
            env=self.environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip

    def log(self) -> str:
        return "".join(path.read_text() for path in self.directory.glob("*.log"))

    def show(self, name: str) -> dict[str, Any]:
        return self.call("show", name)

    @contextmanager
    def serving(self, kind: str, name: str, file: Path, *more: object) -> Iterator[dict[str, Any]]:
        info = self.call("create", "--type", kind, name, file, *more)
        try:
            yield info
        except BaseException:
            print(self.log())
            raise
        finally:
            done = self.ask("stop", "--force", name)
            assert done.returncode == 0, done.stderr
            assert list(self.directory.iterdir()) == []


@contextmanager
def relocating(
    file: Path, rounds: int, length: int, exports: Exports | Runtime | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which moves pieces of the file about meanwhile; it has ended well after.
    With `exports` each time is a recall of the export "disk" of its own."""
    arguments = [file, rounds, length, 0.05]
    if exports is not None:
        arguments.append(exports.directory / "disk.stats")
    process = subprocess.Popen([sys.executable, RELOCATE, *map(str, arguments)])
    try:
        yield process
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
