"""The layers of an unprivileged user's overlay, and how to mount it in a namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
UNPRIVILEGED = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
OWN_NAMESPACE = (*UNPRIVILEGED, "unshare", "--user", "--map-root-user", "--mount")


@contextmanager
def layers(top: Path) -> Iterator[Path]:
    """Directories upper, work, lower and merged of the user nobody, who can reach them, below
    `top`."""
    for path in (top, *(top / name for name in ("upper", "work", "lower", "merged"))):
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
    for above in top.resolve().parents:
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)


def options(top: Path, *, userxattr: bool) -> str:
    """Of mount -t overlay; an unprivileged user's needs `userxattr`."""
    names = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    return f"{names},userxattr" if userxattr else names
