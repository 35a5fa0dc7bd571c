"""Ways out of a scope: names below a directory that lead to a sealed file outside, or nowhere."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import PATIENCE

# NUL, and what is no UTF-8 once it is a file name (protocol/codec.py).
STRANGE = ("a\0b", "\U0010ffff", "\u202egpj", "x" * 300)


@dataclass(frozen=True)
class Maze:
    """`inside` is the guest's directory; from there lead a symbolic link to a directory outside and
    a hard link of a sealed file outside."""

    inside: Path
    seal: str
    file: Path

    @property
    def forbidden(self) -> list[Path]:
        name = self.file.name
        return [
            self.file,
            self.inside / "out" / name,
            self.inside / ".." / name,
            self.inside / "link",
            self.inside / "proc" / "self" / "root" / str(self.file).lstrip("/"),
        ]

    @property
    def missing(self) -> list[Path]:
        return [
            self.inside / "nothing",
            self.inside / "out" / "nothing",
            self.inside / ".." / "nothing",
            self.inside / "dangling",
        ]


@contextmanager
def links(inside: Path, file: Path) -> Iterator[Path]:
    """The guest's directory with its links, which are removed after."""
    inside.mkdir(exist_ok=True)
    made = {
        "out": file.parent,
        "link": file,
        "dangling": file.parent / "nowhere",
        "proc": Path("/proc"),
    }
    for name, target in made.items():
        (inside / name).symlink_to(target)
    (inside / "hard").hardlink_to(file)
    try:
        yield inside
    finally:
        for name in (*made, "hard"):
            (inside / name).unlink()


@contextmanager
def elsewhere(maze: Maze) -> Iterator[list[Path]]:
    """Names that a process in a mount namespace of its own gives to the sealed file: by way of its
    root, and by mounts that it alone has, over an empty directory of the guest's and over a file of
    the guest's. In this namespace the first two lead out of the scope, the others to nothing."""
    hollow, blank = maze.inside / "hollow", maze.inside / "blank"
    hollow.mkdir()
    blank.write_bytes(bytes(4096))
    program = (
        'mount --bind "$1" "$2" && mount --bind "$1/$3" "$4" && cmp "$1/$3" "$2/$3"'
        " && echo ready && exec cat"
    )
    outside, name = maze.file.parent, maze.file.name
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", program, "sh", outside, hollow, name, blank],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        root = Path(f"/proc/{process.pid}/root")
        yield [
            root / str(maze.file).lstrip("/"),
            maze.inside / "proc" / str(process.pid) / "root" / str(maze.file).lstrip("/"),
            hollow / name,
            hollow / "nothing",
        ]
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()
        hollow.rmdir()
        blank.unlink()
