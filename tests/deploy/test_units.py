"""The systemd units: without a warning, and no more open than was decided."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sealsvc_api.principals import Entry, read

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"

# systemd's measure of exposure, from 0 to 10. That of the service itself is what remains when it
# must see the host's mounts and processes: the unit's comments say why.
WORST = {"sealsvc.service": 4.6, "sealsvc-api.service": 0.5}

# Each of these makes a mount namespace of the service's own.
SEPARATING = set(
    re.findall(
        r"\w+",
        """ProtectSystem ProtectHome PrivateTmp PrivateDevices ProtectProc ProcSubset PrivateMounts
        ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups
        PrivateNetwork PrivateIPC PrivateUsers ReadOnlyPaths ReadWritePaths InaccessiblePaths
        BindPaths MountFlags TemporaryFileSystem RootDirectory RootImage DynamicUser""",
    )
)

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze (Debian: systemd)"
)


def installed(directory: Path) -> Path:
    """The units as on a machine where the programs are, with their man pages."""
    bin_directory = Path(sys.executable).parent
    for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]:
        text = unit.read_text().replace("=/usr/bin/seal", f"={bin_directory}/seal")
        (directory / unit.name).write_text(text)
    for page in (ROOT / "deploy" / "man").glob("*.[1-8]"):
        section = directory / "man" / f"man{page.suffix[1:]}"
        section.mkdir(parents=True, exist_ok=True)
        (section / page.name).write_text(page.read_text())
    return directory


def test_they_load_without_a_warning(tmp_path: Path) -> None:
    units = sorted(installed(tmp_path).glob("sealsvc*.*"))
    assert len(units) == 5
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        env={**os.environ, "MANPATH": f"{tmp_path}/man", "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # What it says of the machine's own units is not ours.
    said = [line for line in done.stderr.splitlines() if "sealsvc" in line]
    assert not said
    assert done.returncode == 0, done.stderr


def test_units_that_are_named_are_there() -> None:
    """In what programs print (help, advice), and in the documents."""
    named = set()
    for file in (*ROOT.glob("sealsvc/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"):
        for line in re.findall(r"systemctl ([a-z][^`'\")|\n#]*)", file.read_text()):
            named |= {(file.name, word) for word in line.split() if word.startswith("sealsvc")}
    assert ("status.py", "sealsvc") in named
    missing = [(where, unit) for where, unit in named if not unit_file(unit).exists()]
    assert not missing


def unit_file(name: str) -> Path:
    """As systemctl(1) completes it; of a template, its file."""
    name = re.sub(r"@[^.]*", "@", name.rstrip(",.;"))
    return UNITS / (name if name.endswith((".service", ".socket")) else f"{name}.service")


@pytest.mark.parametrize("name", WORST)
def test_the_exposure_is_bounded(name: str, record_property: pytest.RecordProperty) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / name],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(rf"exposure level for {re.escape(name)}: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    print(f"{name}: exposure {found[1]} of 10")
    record_property("exposure", found[1])
    assert float(found[1]) <= WORST[name]


def keys(name: str) -> set[str]:
    return set(re.findall(r"^(\w+)=", (UNITS / name).read_text(), re.MULTILINE))


def test_the_service_shares_the_host_s_mounts() -> None:
    assert not keys("sealsvc.service") & SEPARATING
    # What is looked for is found where it is.
    assert {"ProtectSystem", "PrivateNetwork"} <= keys("sealsvc-api.service")


def test_the_users_and_directories_are_as_systemd_reads_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/sealsvc").mkdir()
    principals = tmp_path / "etc/sealsvc/principals.toml"
    principals.touch(mode=0o600)
    root = f"--root={tmp_path}"
    # Where the whole tree stands in for /, only root may change owners.
    if os.geteuid() != 0:
        pytest.skip("needs root")
    subprocess.run(["systemd-sysusers", root, UNITS / "sealsvc.sysusers"], check=True, timeout=60)
    user = next(
        line.split(":")
        for line in (tmp_path / "etc/passwd").read_text().splitlines()
        if line.startswith("sealsvc-api:")
    )
    assert user[5:] == ["/", "/usr/sbin/nologin"]
    subprocess.run(
        ["systemd-tmpfiles", root, "--create", UNITS / "sealsvc.tmpfiles"], check=True, timeout=60
    )
    assert (tmp_path / "run/sealsvc").stat().st_mode & 0o7777 == 0o755
    assert principals.stat().st_mode & 0o7777 == 0o640
    assert principals.stat().st_gid == int(user[3])


def test_the_example_of_principals_is_one(tmp_path: Path) -> None:
    """With its examples uncommented; as it is, nobody is known."""
    example = ROOT / "deploy" / "principals.toml"
    path = tmp_path / "principals.toml"
    path.write_text(example.read_text())
    path.chmod(0o640)
    assert list(read(path)) == []
    lines = example.read_text().splitlines()
    begun = next(n for n, line in enumerate(lines) if line.startswith("# [principal.mon"))
    path.write_text("\n".join(line.removeprefix("# ").strip("#") for line in lines[begun:]))
    known = {caller.name: caller for caller in read(path)}
    assert known["monitoring"].below is None
    assert (known["storage-team"].below, known["storage-team"].holders) == (("/srv/pmem",), None)
    keys = set(re.findall(r"^# ([a-z_]+(?:, [a-z_]+)?)  +\S", example.read_text(), re.MULTILINE))
    documented = {key for row in keys for key in row.split(", ")}
    assert documented == {field.name for field in msgspec.structs.fields(Entry)}
