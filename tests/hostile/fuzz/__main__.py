"""python -m tests.hostile.fuzz --inputs 1000000: every string and integer of every request, over
the control socket and over REST, against a real service on a simulated system and the real API.

With `--root DIR`, a directory on XFS or ext4, the service seals real files there (needs root). What
is wrong is printed with the input; exit status 1 then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sealsvc.protocol.system import Simulate
from sealsvc_api.app import build_app
from sealsvc_api.settings import Settings
from tests.api import running as processes
from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front, simulated
from tests.hostile.fuzz.control import Control
from tests.hostile.fuzz.drawn import Draw
from tests.hostile.fuzz.rest import Rest
from tests.hostile.fuzz.tally import Tally
from tests.support.service import RISKS, Running

_FILES = 6
_TOKENS = [TOKEN, TOKEN, TOKEN, "operator", "sealer", "viewer", "guest"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--rest", type=float, default=0.2, help="share of REST (0.2)")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long (600)")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--root", type=Path, help="seal real files in this directory")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    processes.PATIENCE = 120.0  # beside other work
    tally = Tally()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        made = Path(directory)
        service = _real_service(made, asked.root) if asked.root else simulated_service(made)
        there, paths = stack.enter_context(service)
        run(there, paths, asked.seed, asked.inputs, asked.rest, asked.minutes * 60, tally)
        log = Path(directory) / ("log" if asked.root else "service.log")
        if "Traceback" in log.read_text():
            tally.blame("ended", "the service's log", log.read_text()[-3000:])
    print(tally)
    return bool(tally.wrong)


def run(
    there: Front,
    paths: list[str],
    seed: str,
    inputs: int,
    rest: float,
    seconds: float,
    tally: Tally,
) -> None:
    """Both faces at once, each in a process of its own; `tally` has the sum."""
    until = time.monotonic() + seconds
    with there.client() as client:
        before = client.status().pid
    of_rest = int(inputs * rest)
    works = {
        "control": (_control, there.control, seed, paths, inputs - of_rest, until),
        "rest": (_rest, there.base, seed, paths, of_rest, until),
    }
    context = multiprocessing.get_context("fork")
    with context.Pool(len(works)) as pool:
        results = {n: pool.apply_async(work, args) for n, (work, *args) in works.items()}
        for name, result in results.items():
            found = result.get()
            print(f"{name}: {found.inputs} inputs", flush=True)
            tally.join(found)
    with there.client() as client:
        if client.status().pid != before:
            tally.blame("ended", "the service", "another process serves")


def _control(path: str, seed: str, paths: list[str], inputs: int, until: float) -> Tally:
    tally = Tally()
    Control(path, f"{seed} control", paths, tally).run(inputs, until)
    return tally


def _rest(base: str, seed: str, paths: list[str], inputs: int, until: float) -> Tally:
    tally = Tally()
    Rest(base, described(), _TOKENS, Draw(f"{seed} rest", paths), tally).run(inputs, until)
    return tally


def described() -> dict[str, Any]:
    return build_app(Settings()).openapi()


@contextmanager
def simulated_service(directory: Path) -> Iterator[tuple[Front, list[str]]]:
    """A service and the API before it, and the paths that requests should name."""
    with simulated(directory) as there:
        paths = [f"/sim/{n}" for n in range(_FILES)]
        with there.client() as client:
            for path in paths:
                client.call(Simulate, action="create", path=path, size=1 << 20)
        yield there, [*paths, "/sim", "/sim/none"]


@contextmanager
def _real_service(directory: Path, root: Path) -> Iterator[tuple[Front, list[str]]]:
    with ExitStack() as stack:
        paths = []
        for n in range(_FILES):
            path = root / f"fuzz-{os.getpid()}-{n}"
            path.write_bytes(os.urandom(1 << 20))
            stack.callback(path.unlink)
            paths.append(str(path))
        running = Running(directory, [root], RISKS)
        running.start()
        stack.callback(running.end)
        running.ready()
        roles = {
            name: {"role": name, "scopes": ["/"], "holders": ["*"], "token": name}
            for name in ("admin", "operator", "sealer", "viewer")
        }
        roles["admin"]["token"] = TOKEN
        roles["guest"] = {"role": "sealer", "scopes": [str(root / "guest")], "token": "guest"}
        for role in roles.values():
            role["requests_per_second"] = 1e6
        principals = write_principals(directory / "principals.toml", **roles)
        yield stack.enter_context(front(directory, principals)), [*paths, str(root)]


if __name__ == "__main__":
    sys.exit(main())
