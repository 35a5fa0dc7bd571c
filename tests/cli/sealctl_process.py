"""A real sealctl process, as a test sees it."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from fake_daemon import PATIENCE


class Sealctl:
    """A running sealctl process."""

    def __init__(self, arguments: tuple[str, ...], env: dict[str, str], **how: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "sealsvc.cli.sealctl", *arguments],
            env=env,
            text=True,
            **{"stdin": subprocess.DEVNULL} | how,
        )

    def result(self, stdin: str | None = None) -> tuple[int, str, str]:
        out, err = self.process.communicate(stdin, timeout=PATIENCE)
        assert "Traceback" not in (err or ""), err
        return self.process.returncode, out, err

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def line(self) -> str:
        """The next line of its output."""
        stdout = self.process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], PATIENCE)[0], "no output in time"
        return str(stdout.readline()).strip()


Start = Callable[..., Sealctl]
