"""Debian 12 and 13: built from a clone, packaged, installed, used and removed; and the path of a
newcomer, by the commands that the README shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.conftest import on_fresh_debian
from tests.docs.commands import ROOT, blocks, commands

HERE = Path(__file__).parent
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
LIMIT = 120.0  # seconds of processor time from the package to seals in Python and in C
USUAL = 0.3  # seconds that `slowness` works, where the limit was set

pytestmark = [pytest.mark.slow]


def tree(file: Path) -> None:
    """What git knows of this tree, as it is now."""
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    there = b"\0".join(name for name in names if name and (ROOT / name.decode()).is_file())
    command = ["tar", "-C", ROOT, "--null", "--files-from=-", "--create", "--file", file]
    subprocess.run(command, input=there, check=True)


def section(title: str) -> str:
    """Of the README."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text)
    assert found, f"README.md has no section {title!r}"
    return found[1]


def written_down(given: Path) -> None:
    """The newcomer's commands and program, out of the README: /given/steps, /given/hold.py."""
    page = given / "page.md"
    page.write_text(section("Use it"))
    install = next(c for block in blocks(page) for c in commands(block) if "apt install" in c)
    [program] = [block for block in blocks(page) if block.startswith("from sealsvc.client")]
    page.write_text(section("A first seal of your own"))
    steps = [install.split("&& ")[1], *(c for block in blocks(page) for c in commands(block))]
    page.unlink()
    (given / "hold.py").write_text(program + "\n")
    (given / "steps").write_text("".join(f"{step}\n" for step in steps))


def walk(suite: str, package: Path, given: Path) -> None:
    """The newcomer's path, whose limit is longer on a slower machine."""
    written_down(given)
    (given / "build").mkdir()
    shutil.copy(package, given / "build")
    shutil.copy(HERE / "newcomer", given)
    # Where the README says `hold.py` and `./build`, the newcomer stands.
    start = "cp -r /given/build /given/hold.py /home && exec /given/newcomer /given/steps"
    said = on_fresh_debian(suite, given, "sh", "-c", start, seconds=1400)
    times = [int(ms) / 1000 for ms in re.findall(r"newcomer: after (\d+) ms", said)]
    assert said.endswith("newcomer: done\n")
    # One from Python, one from C, each granted, asked back and returned.
    assert re.search(r"(?m)^sealed: 1048576 bytes", said)
    assert re.search(r"(?m)^sealed: byte 0 is at \d+ of the device", said)
    assert len(re.findall(r"(?m)^returned$", said)) == 2
    used = re.search(r"newcomer: processor: (\d+)m([\d.]+)s (\d+)m([\d.]+)s", said)
    assert used
    worked = sum(int(used[i]) * 60 + float(used[i + 1]) for i in (1, 3))
    print(f"{worked:.0f} s of processor time in {times[-1]:.0f} s, {slowness():.1f} times as slow")
    assert worked <= LIMIT * max(1.0, slowness())


def slowness() -> float:
    """How many times as long as where the limit was set a processor takes for the same work."""
    begun = time.process_time()
    sum(n * n for n in range(5_000_000))
    return (time.process_time() - begun) / USUAL


@pytest.mark.timeout(1500)
def test_a_newcomer_has_seals_within_two_minutes(package: Path, tmp_path: Path) -> None:
    """On the Debian for whose Python the package was made."""
    given = tmp_path / "given"
    given.mkdir()
    walk("bookworm", package, given)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suite", PYTHONS)
def test_from_a_clone_to_its_removal(suite: str, tmp_path: Path) -> None:
    """Built, packaged, installed, used, upgraded, removed and purged; then a newcomer's path."""
    given = tmp_path / "given"
    given.mkdir()
    tree(given / "tree.tar")
    shutil.copy(HERE / "package-build", given)
    build = ["/given/package-build", "/given/tree.tar", "/given"]
    on_fresh_debian(suite, given, *build, seconds=2400)
    [package] = given.glob("sealsvc_*.deb")
    depends = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True
    ).stdout
    assert f"python3 (>= {PYTHONS[suite]}~)" in depends
    shutil.copy(HERE / "package-life", given)
    life = ["/given/package-life", f"/given/{package.name}"]
    assert on_fresh_debian(suite, given, *life, seconds=900).endswith("package-life: done\n")
    begun = tmp_path / "newcomer"
    begun.mkdir()
    walk(suite, package, begun)
