"""The commands that documents show, and how tests run them: as they stand, by the programs of this
tree, with other names for what cannot be here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MODULES = {
    "sealctl": "sealsvc.cli.sealctl",
    "sealsvc": "sealsvc.cli.service",
    "sealsvc-api": "sealsvc_api.serve",
}
# Holders of the documents: any command will do.
_HOLDERS = ("my-rdma-server", "my-server")


def blocks(page: Path) -> Iterable[str]:
    """What stands apart, by four columns or between fences."""
    inside: list[str] = []
    fenced = False
    for line in [*page.read_text().splitlines(), "."]:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    ") or (inside and not line.strip()):
            inside.append(line if fenced else line[4:])
            continue
        if text := "\n".join(inside).strip("\n"):
            yield text
        inside = []


def commands(block: str) -> Iterable[str]:
    """The lines of a block, without their comments; several are one while a quote is open, or
    behind a backslash."""
    waiting = ""
    for line in block.splitlines():
        waiting += line.split("  #")[0].rstrip() + "\n"
        try:
            shlex.split(waiting)
        except ValueError:
            continue
        if not line.endswith("\\") and waiting.strip():
            yield waiting.strip()
            waiting = ""
    assert not waiting.strip(), f"it does not end: {waiting}"


def programs(directory: Path) -> Path:
    """A folder for PATH: ours, those of the documents' holders, and a sudo that need not ask."""
    made = directory / "programs"
    if made.exists():
        return made
    made.mkdir()
    texts = {
        name: f'PYTHONPATH="{ROOT}:{ROOT}/api" exec "{sys.executable}" -m {module} "$@"'
        for name, module in _MODULES.items()
    }
    texts["python"] = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"'
    texts |= dict.fromkeys(_HOLDERS, "exit 0") | {"sudo": 'exec "$@"'}
    for name, text in texts.items():
        (made / name).write_text(f"#!/bin/sh\n{text}\n")
        (made / name).chmod(0o755)
    return made


def played(
    command: str,
    directory: Path,
    names: Iterable[tuple[str, str]] = (),
    seconds: float = 110,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run in `directory`, with `names` of the document replaced by those that are here."""
    for there, here in names:
        command = command.replace(there, here)
    path = f"{programs(directory)}:{os.environ['PATH']}"
    return subprocess.run(
        ["timeout", str(seconds), "bash", "-c", command],
        cwd=directory,
        env={**os.environ, "HOME": str(directory), "PATH": path, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
