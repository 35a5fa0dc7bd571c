"""The completion scripts of the package, as the shells use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE

BIN = Path(sys.executable).parent
WANTED = {"recall", "redeem", "relocate", "renew", "return"}

# Each asks its shell what `sealctl re` may become.
ASK = {
    "bash": (
        '. "$1"; COMP_WORDS=(sealctl re); COMP_CWORD=1; _sealctl_completion sealctl re sealctl;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    ),
    # compdef and compadd work only while a user types; these stand in for them.
    "zsh": (
        "compdef() { :; }; _describe() { print -l ${(P)3%%:*} };"
        ' compadd() { print -l "${@[-1]}" }; source "$1"; words=(sealctl re); CURRENT=2;'
        " _sealctl_completion"
    ),
    "fish": "source $argv[1]; complete --do-complete 'sealctl re'",
}


@pytest.mark.parametrize("shell", ASK)
def test_the_shell_completes_a_command(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = tmp_path / "script"
    with script.open("w") as out:
        command = [BIN / "sealctl", "completion", shell]
        subprocess.run(command, stdout=out, check=True, timeout=PATIENCE)
    name = [] if shell == "fish" else ["ask"]
    done = subprocess.run(
        [shell, "-c", ASK[shell], *name, script],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = {line.split()[0].split(":")[0] for line in done.stdout.splitlines() if line.strip()}
    assert found == WANTED, done.stdout + done.stderr
