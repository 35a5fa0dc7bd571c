"""The man pages: well formed, complete, and true. Their examples are run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec
import pytest

from sealsvc import config
from sealsvc.cli.sealctl import sealctl
from sealsvc.cli.service import main as sealsvc
from sealsvc.errors import TABLE

ROOT = Path(__file__).parents[2]
MAN = ROOT / "deploy" / "man"
PAGES = sorted(MAN.iterdir())
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_is_well_formed(page: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("there is no mandoc")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def options(command: click.Command) -> set[str]:
    """The long options of a command."""
    return {
        name.removeprefix("--")
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if name.startswith("--")
    }


def written(text: str) -> set[str]:
    """The long options that have an item of their own."""
    items = re.findall(r"^\.It (Fl .*)$", text, re.MULTILINE)
    return {name for item in items for name in re.findall(r"Fl -([a-z][a-z-]*)", item)}


def sections(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\.Sh ([^\n]+)\n(.*?)(?=^\.Sh |\Z)", text, re.MULTILINE | re.DOTALL))


def test_sealctl_has_every_command_and_option() -> None:
    page = sections((MAN / "sealctl.1").read_text())
    described = dict(
        re.findall(
            r"^\.It Cm ([a-z]+)(.*?)(?=^\.It Cm |\Z)", page["COMMANDS"], re.MULTILINE | re.DOTALL
        )
    )
    assert set(described) == set(sealctl.commands)
    shared = options(sealctl) - {"version"}
    assert written(page["DESCRIPTION"]) == shared
    for name, command in sealctl.commands.items():
        assert written(described[name]) == options(command) - shared, name


def test_sealctl_has_every_exit_status() -> None:
    listed = re.findall(r"^\.It (\d+)$", (MAN / "sealctl.1").read_text(), re.MULTILINE)
    assert {row.exit for row in TABLE.values()} <= set(map(int, listed))


def test_sealsvc_has_every_option() -> None:
    described = dict(
        re.findall(
            r"^\.Ss (serve|release)\n(.*?)(?=^\.S[sh] )",
            (MAN / "sealsvc.8").read_text(),
            re.MULTILINE | re.DOTALL,
        )
    )
    assert isinstance(sealsvc, click.Group)
    assert set(described) == set(sealsvc.commands)
    for name, command in sealsvc.commands.items():
        assert written(described[name]) == options(command), name


def toml_of(default: object) -> str:
    """A default as the page writes it."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f"Qq {default}".strip()
    if isinstance(default, list) and default and isinstance(default[0], str):
        return f"Bq {' , '.join(f'Qo {item} Qc' for item in default)}"
    return str(default)


def test_the_configuration_has_every_key_with_its_default() -> None:
    text = (MAN / "sealsvc.toml.5").read_text()
    described = dict(
        re.findall(r"^\.Ss Bq ([a-z]+)\n(.*?)(?=^\.S[sh] )", text, re.MULTILINE | re.DOTALL)
    )
    tables = msgspec.structs.fields(config.Config)
    assert list(described) == [table.name for table in tables]
    for table in tables:
        defaults = msgspec.structs.asdict(getattr(config.Config(), table.name))
        found = re.findall(r"^\.It Ic (\w+) No = ?(.*)$", described[table.name], re.MULTILINE)
        assert {key: value.replace(" ", "") for key, value in found} == {
            key: toml_of(default).replace(" ", "") for key, default in defaults.items()
        }


def examples(page: str) -> list[str]:
    return re.findall(
        r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed$",
        sections((MAN / page).read_text())["EXAMPLES"],
        re.MULTILINE | re.DOTALL,
    )


def test_the_configuration_s_examples_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "sealsvc.toml"
    found = examples("sealsvc.toml.5")
    assert len(found) == 2
    for example in found:
        file.write_text(example)
        loaded = config.load(file)
        assert loaded.policy.roots == ["/mnt/pmem"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **more}


def test_what_sealsvc_says_to_try_works(tmp_path: Path) -> None:
    script = examples("sealsvc.8")[0].replace("/tmp/seal.sock", f"{tmp_path}/seal.sock")
    serve, status = script.splitlines()
    with subprocess.Popen(serve.removesuffix(" &").split(), env=environment()) as process:
        try:
            until_there(tmp_path / "seal.sock", process)
            done = subprocess.run(
                status.split(), env=environment(), capture_output=True, text=True, timeout=30
            )
            assert done.returncode == 0, done.stderr
            assert "sim" in done.stdout
        finally:
            process.terminate()


def until_there(socket: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not socket.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.kernel
def test_the_other_examples_work_on_a_real_file_system(xfs: Path, tmp_path: Path) -> None:
    """In their order, on a file system that stands in for the one of the page."""
    (xfs / "db").write_bytes(os.urandom(1 << 20))
    socket = tmp_path / "control.sock"
    serve = examples("sealsvc.8")[1].replace("/mnt/pmem", str(xfs)).split()
    env = environment(SEALSVC_SOCKET=str(socket))
    with subprocess.Popen(serve, env=env) as process:
        try:
            until_there(socket, process)
            for line in "".join(examples("sealctl.1")).splitlines():
                command = line.replace("/mnt/pmem", str(xfs)).split()
                done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, f"{line}: {done.stderr}"
        finally:
            process.terminate()
    assert process.returncode == 0
    (xfs / "db").unlink()
