"""`./dev test`: every test, on two processes; a test that failed is tried once more, alone.

    ./dev test                    every test but those marked `long`
    ./dev test --long             those as well: hours, and a run is ended after 85 minutes
    ./dev test --fast             the inner loop: no file systems, no guests, no packages
    ./dev test ARGUMENTS          what pytest is told, and no second try

The first try runs beside others, on a machine that may be slow: a test that passes alone after it
failed is listed as FLAKY. It is a fault, of the test or of the product, and the list says that it
is there; it does not fail the run unless there are more than five.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_QUICK = ("tests/unit", "tests/sim", "tests/operations", "tests/docs")
_FAST = (*_QUICK, "-m", "not slow and not kernel", "--no-lab")
_SHARED = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
_SECOND_TRIES = 5  # more failures than these are no accident of one machine
_SOME_FAILED = 1  # pytest's exit status
_MEMORY = ROOT / ".pytest_cache/v/cache/lastfailed"


def main(arguments: Sequence[str]) -> int:
    if arguments == ["--fast"]:
        return _pytest(*_SHARED, *_FAST)
    if arguments not in ([], ["--long"]):
        return _pytest(*arguments)
    _MEMORY.unlink(missing_ok=True)
    status = _pytest(*_SHARED, *arguments)
    return _second_try(arguments) if status == _SOME_FAILED else status


def _second_try(arguments: Sequence[str]) -> int:
    failed = _failed()
    if not failed or len(failed) > _SECOND_TRIES:
        return _SOME_FAILED
    print(f"test: once more, alone: {len(failed)} that failed", flush=True)
    status = _pytest("--last-failed", "--last-failed-no-failures", "none", *arguments)
    still = set(_failed()) if status else set()
    for name in failed:
        print(f"test: {'FAILED twice' if name in still else 'FLAKY: failed, then passed'}: {name}")
    return status


def _failed() -> list[str]:
    """What pytest remembers of the last run; a file that could not be collected counts, too."""
    try:
        return sorted(json.loads(_MEMORY.read_text()))
    except FileNotFoundError:
        return []


def _pytest(*arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", "-rsfE", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    # An interrupt is for pytest, which takes down what its tests set up; its end is ours.
    signal.signal(signal.SIGINT, lambda *_: None)
    sys.exit(main(sys.argv[1:]))
