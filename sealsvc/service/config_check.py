"""Checks a configuration against this machine, before the service is started with it.

config.py checks the text, this module the file system. A root that does not exist, is not a
directory, or is reached through a symbolic link is an error: nothing below it can be sealed. A root
on a file system that cannot keep seals is a warning, because the right one may be mounted later.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sealsvc.linux import mountinfo
from sealsvc.linux.filesystem import SUPPORTED
from sealsvc.runtime.config import Config, parse
from sealsvc.runtime.toml_places import placed


class Finding(NamedTuple):
    """`fatal`: the service must not be started with this configuration."""

    text: str
    fatal: bool


def check(data: bytes, file: Path | None) -> list[Finding]:
    """The findings on the configuration `data` (TOML, UTF-8), which was read from `file`. Raises
    ConfigError when it cannot be parsed."""
    config, text = parse(data, file), data.decode()

    def told(key: str, what: str, *, fatal: bool) -> Finding:
        return Finding(placed(file or "the defaults", text, key.split("."), what), fatal)

    found = [
        told("policy.roots", f"{root!r} {what}", fatal=fatal)
        for root in config.policy.roots
        for what, fatal in _root(root)
    ]
    if not config.policy.roots:
        found.append(told("policy.roots", "no path can be sealed, only descriptors", fatal=False))
    found += [told("registry.directory", what, fatal=True) for what in _registry(config)]
    return found


def _root(root: str) -> Iterator[tuple[str, bool]]:
    try:
        kind = os.lstat(root).st_mode
    except OSError as error:
        yield f"cannot be looked at: {error.strerror}", True
        return
    real = os.path.realpath(root)
    if stat.S_ISLNK(kind):
        yield f"is a symbolic link: say {real}", True
    elif not stat.S_ISDIR(kind):
        yield "is not a directory", True
    elif real != os.path.normpath(root):
        yield f"is reached through a symbolic link: say {real}", True
    elif kind_here := _unsupported(root):
        yield f"lies on {kind_here}, where no seal can be kept: is it mounted?", False


def _unsupported(root: str) -> str:
    """The type of the file system of a directory. Empty when a seal can be kept on it, or on a
    file system that is mounted at or below the directory."""
    mounts = mountinfo.own().read()
    below = [m for m in mounts if m.point == root or m.point.startswith(root.rstrip("/") + "/")]
    if any(mount.type in SUPPORTED for mount in below):
        return ""
    over = [m for m in mounts if (root + "/").startswith(m.point.rstrip("/") + "/")]
    under = max(over, key=lambda mount: len(mount.point), default=None)
    return "" if under is None or under.type in SUPPORTED else under.type


def _registry(config: Config) -> Iterator[str]:
    if not config.registry.enabled:
        return
    directory = os.path.realpath(config.registry_path)
    for root in config.policy.roots:
        if os.path.commonpath([directory, os.path.realpath(root)]) == os.path.realpath(root):
            yield f"{directory} lies below the root {root!r}: it would be on what is sealed"
    if os.path.lexists(directory) and not os.path.isdir(directory):
        yield f"{directory} is not a directory"
