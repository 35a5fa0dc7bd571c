"""Two Debian packages, N and N+1, installed over each other while seals are held."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import on_fresh_debian
from tests.service import versions

HERE = Path(__file__).parent
INSTALL = """
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt-get update -qq
apt-get satisfy -y -qq --no-install-recommends \
    'systemd-standalone-sysusers, systemd-standalone-tmpfiles' >/dev/null
apt-get install -y -qq --no-install-recommends "$1" >/dev/null
exec /usr/lib/sealsvc/bin/python3 /given/package_upgrade.py "$@"
"""


def later(package: Path, directory: Path) -> Path:
    """The package of a later version, made of this one: its modules are changed to those of
    versions.make_later, and it has another version."""
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True, timeout=120)
    (modules,) = tree.glob("usr/lib/sealsvc/lib/python3*/site-packages/sealsvc")
    versions.make_later(modules)
    versions.name_version(modules)
    control = tree / "DEBIAN" / "control"
    text = re.sub(r"(?m)^Version: .*$", f"Version: {versions.VERSION}", control.read_text())
    control.write_text(text)
    sums = tree / "DEBIAN" / "md5sums"
    names = [line.split("  ", 1)[1] for line in sums.read_text().splitlines()]
    sums.write_text(
        "".join(f"{hashlib.md5((tree / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    )
    made = directory / f"sealsvc_{versions.VERSION}_later.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, made]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    return made


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_up_and_down_over_live_seals(package: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    packages = [package, later(package, tmp_path)]
    for file in (*packages, HERE / "package_upgrade.py"):
        shutil.copy(file, given)
    names = [f"/given/{file.name}" for file in packages]
    said = on_fresh_debian("bookworm", given, "sh", "-c", INSTALL, "sh", *names, seconds=1500)
    assert said.count(f"{versions.VERSION} goes on with 3 seals") == 2, said
    assert said.count("goes on with 3 seals") == 4, said
    assert "Traceback" not in said
    assert said.endswith("package_upgrade: done\n")
