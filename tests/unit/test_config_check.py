"""Errors of configurations and of principals name the line; check-config names what is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.runtime import config
from sealsvc.runtime.config import ConfigError
from sealsvc.service.config_check import check
from sealsvc_api.principals import read
from sealsvc_api.settings import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[service]\nlog_level = "loud"\n', "c:2: service.log_level: 'loud' is not one of debug,"),
        ("[policy]\n\nmax_gracee = 1.0\n", "c:3: policy.max_gracee: there is no such key; did"),
        ("[policy]\nmax_grace = -1.0\n", "c:2: policy.max_grace: Expected `float` > 0"),
        ('[policy]\nroots = [\n  "x",\n]\n', "c:2: policy.roots: 'x' is not an absolute path"),
        ('[policy]\naccept_risks = ["al"]\n', "c:2: policy.accept_risks: unknown al; choose from"),
        ('[policy]\noperators = ["nobody-at-all"]\n', "c:2: policy.operators: there is no user"),
        ('[enforcers]\nuse = ["magic"]\n', "c:2: enforcers.use: unknown magic; choose from bpf"),
        ("[polcy]\n", "c:1: polcy: there is no such key; did you mean policy?"),
    ],
)  # fmt: skip
def test_an_error_has_its_line_and_the_choices(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text.encode(), Path("c"))
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[principal.a]\nrole = "viewer"\n[principal.b]\nrole = "oprator"\n',
            "4: principal.b.role: 'oprator' is not one of viewer, sealer, operator, admin",
        ),
        (
            '[principal.b]\nrole = "viewer"\nscope = ["/"]\n',
            "3: principal.b.scope: there is no such key; did you mean scopes?",
        ),
    ],
)
def test_a_bad_principal_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        read(file)
    assert str(caught.value) == f"{file}:{told}"


def test_roots_are_held_against_the_machine(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    roots = [f"{tmp_path}/{name}" for name in ("link", "link/deep", "file", "absent")]
    text = f'[policy]\nroots = {roots}\n[registry]\ndirectory = "{tmp_path}/real/registry"\n'
    findings = check(text.replace("'", '"').encode(), Path("c"))
    told = [finding.text for finding in findings if finding.fatal]
    for root, why in zip(
        roots,
        (
            f"is a symbolic link: say {real}",
            f"is reached through a symbolic link: say {real}/deep",
            "is not a directory",
            "cannot be looked at: No such file or directory",
        ),
        strict=True,
    ):
        assert f"c:2: policy.roots: '{root}' {why}" in told
    (below,) = [text for text in told if "registry.directory" in text]
    assert below.startswith(f"c:4: registry.directory: {tmp_path}/real/registry lies below")


def test_a_root_that_is_not_mounted_is_a_warning() -> None:
    (finding,) = check(b'[policy]\nroots = ["/proc/sys"]\n', None)
    assert not finding.fatal
    assert "lies on proc, where no seal can be kept: is it mounted?" in finding.text


def test_the_command(tmp_path: Path) -> None:
    good, bad = ROOT / "deploy" / "sealsvc.toml", tmp_path / "bad.toml"
    bad.write_text('[policy]\nroots = ["/no/such/root"]\n')
    for file, status, said in ((good, 0, "good"), (bad, 1, f"{bad}:2: policy.roots")):
        done = subprocess.run(
            [sys.executable, "-m", "sealsvc.cli.service", "check-config", file],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
        )
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done


def test_the_documented_risks_are_all() -> None:
    """Those that the configuration takes are those that its page tells of."""
    text = (ROOT / "deploy" / "sealsvc.toml").read_text()
    for risk in config.RISKS:
        assert re.search(rf'[ "]{risk}[,"; (]', text), risk
