"""Every command of the README and of docs/ is run, or stands in a table with the reason why not.

They are run as they stand, on a real XFS: by root, on a service that the README's own line starts.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import RecallSeals
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release
from tests.docs.commands import ROOT, blocks, commands, played, programs
from tests.support.service import MiB
from tests.support.waiting import PATIENCE, until

ELSEWHERE = {
    "docs/copies.md": "tests/copies/test_copy_jobs.py runs such",
    "docs/fuzzing.md": "tests/promise/test_promise.py",
    "docs/model.md": "tests/model/test_model.py",
    "docs/relocate.md": "tests/copies/relocation/test_relocate.py",
    "docs/deploy.md": (
        "tests/deploy/test_package.py, tests/deploy/test_debians.py, tests/deploy/test_systemd.py"
        " and tests/deploy/test_container.py install, start and remove what it is about"
    ),
    "docs/upgrade.md": "tests/service/test_upgrade.py; the package: tests/deploy/test_package.py",
    "docs/exports.md": "tests/exports/test_nbd.py and tests/lab/test_exports_dm.py run each",
    "docs/exports-tcmu.md": "tests/lab/test_exports_tcmu.py does by configfs what it shows",
    "docs/exports-ublk.md": "tests/lab/test_exports_ublk.py runs each",
    "docs/integrity.md": "tests/integrity/test_pi_cli_and_rest.py runs each",
    "docs/python.md": "tests/unit/test_client_wheel.py installs the wheel alone and uses it",
    "docs/troubleshooting.md": "tests/cli/test_sealctl_real.py asks who waits on whom",
    "docs/lab.md": "each boots a machine; tests/lab/test_lab.py boots them, through the same door",
}
# By a newcomer, on a Debian with nothing but the package.
FRESH = (
    "sudo sealsvc serve --root /mnt/pmem &",
    "head -c 1M /dev/urandom > /mnt/pmem/db; sync",
    "/usr/lib/sealsvc/bin/python3 hold.py &",
    "sealctl recall --path /mnt/pmem/db --wait",
    "sudo apt install --no-install-recommends gcc libc6-dev pkg-config",
    "cc -o demo_seal /usr/share/doc/sealsvc/examples/embed/demo_seal.c"
    " $(pkg-config --cflags --libs libseal)",
    "./demo_seal /mnt/pmem/db &",
    "truncate --size 0 /mnt/pmem/db",
)
LISTED = dict.fromkeys(FRESH, "tests/deploy/test_debians.py walks this path") | {
    "./dev build": "what runs here was built by it",
    "sudo ./dev demo": "tests/docs/test_demo.py runs the program behind it",
    "sudo ./dev test": "it runs this test",
    "sudo ./dev lab -- CMD": "it boots a machine: tests/lab/test_lab.py",
    "sudo ./dev deb && sudo apt install ./build/sealsvc_*.deb": (
        "it is for a machine of its own: tests/deploy/test_package.py"
    ),
    "sudo ./dev libseal": "tests/ring/test_libseal_installed.py, with a prefix",
    "cc demo_seal.c $(pkg-config --cflags --libs libseal)": "tests/ring/test_libseal_installed.py",
    "cc -static demo_seal.c $(pkg-config --static --cflags --libs libseal)": (
        "tests/ring/test_libseal_installed.py"
    ),
    "sudo ./dev soak": "it takes ten minutes; tests/soak/test_soak.py is the short one",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 sealsvc-api --principals principals.toml": (
        "tests/api/test_api_traces.py starts it so, with a collector"
    ),
    "sealctl pi attach SEAL --profile t10-dif1-4096": "tests/integrity/test_pi_cli_and_rest.py",
    "sealctl pi verify SEAL; sealctl pi errors --wait 1m": (
        "tests/integrity/test_pi_cli_and_rest.py"
    ),
    "sealctl pi scrub ID --cycle 7d": "tests/integrity/test_scrub.py",
    "sealctl export create --type nbd disk /mnt/pmem/disk.img": "tests/exports/test_nbd.py",
    "sealctl relocate /mnt/pmem/db --align 2M": "tests/copies/relocation/test_relocate.py",
    "sealctl completion bash > /usr/share/bash-completion/completions/sealctl": (
        "an example of the man page, too: tests/deploy/test_man_pages.py"
    ),
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SERVE = "sudo .venv/bin/sealsvc serve --root /mnt/pmem"
TOKEN = "sealsvc-api --new-token"
API = "sealsvc-api --principals principals.toml"
CURL = 'curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8377/v1/seals?state=recalled'
HOLD = "sealctl hold /mnt/pmem/db --prepare allocate,convert --grace 30 -- my-rdma-server"
REMOTE = "SEALSVC_TOKEN=... sealctl --url http://127.0.0.1:8377 ls"
# While nobody holds the file; opening a file that is sealed exclusively is a conflict.
FREE = (
    "./dev",
    HOLD,
    "sealctl map /mnt/pmem/db",
    "sealctl copy --dry-run /mnt/pmem/db /mnt/pmem/copy",
    "sealctl doctor /mnt/pmem",
)
# While `sealctl hold` holds it.
HELD = (
    "sealctl ls",
    "sealctl audit",
    "sealctl history --path /mnt/pmem/db",
    "sealctl why /mnt/pmem/db",
    "sealctl alarms",
    "sealctl changes ID",
    "sealctl trail --verify",
    "sealctl recall --filesystem /mnt/pmem --wait",
)
WATCH = "sealctl watch"


def shown() -> dict[str, str]:
    """Each command, and the page that it stands on."""
    return {
        command: page.name
        for page in PAGES
        if str(page.relative_to(ROOT)) not in ELSEWHERE
        for block in blocks(page)
        if "─" not in block and not block.startswith("from ")  # drawings, and Python
        for command in commands(block)
    }


def test_every_command_is_run_or_listed() -> None:
    run = {SERVE, TOKEN, API, CURL, REMOTE, WATCH, *FREE, *HELD}
    assert not run & LISTED.keys()
    assert shown().keys() == run | LISTED.keys()


@pytest.mark.parametrize("page", ELSEWHERE)
def test_a_page_that_is_tested_elsewhere_is_there(page: str) -> None:
    assert any(True for _ in blocks(ROOT / page))
    for named in re.findall(r"tests/\S+\.py", ELSEWHERE[page]):
        assert (ROOT / named).exists()


class Stage:
    """A service on an XFS, which is /mnt/pmem here."""

    def __init__(self, directory: Path, mount: Path) -> None:
        self.directory, self.mount = directory, mount
        self.socket = directory / "control.sock"
        self.file = mount / "db"
        made = directory / ".venv"
        made.mkdir()
        (made / "bin").symlink_to(programs(directory))
        (directory / "dev").symlink_to(ROOT / "dev")

    def play(
        self, command: str, *names: tuple[str, str], **more: str
    ) -> subprocess.CompletedProcess[str]:
        return played(
            command,
            self.directory,
            [*names, ("/mnt/pmem", str(self.mount))],
            180,
            SEALSVC_SOCKET=str(self.socket),
            **more,
        )

    @contextmanager
    def started(self, command: str, ready: Callable[[], bool]) -> Iterator[Path]:
        """What goes on until it is ended; its log."""
        log = self.directory / f"{command.split()[0].rpartition('/')[2]}.log"
        line = command.replace("/mnt/pmem", str(self.mount))
        path = f"{programs(self.directory)}:{os.environ['PATH']}"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.directory,
                env={**os.environ, "PATH": path, "SEALSVC_SOCKET": str(self.socket)},
                stderr=file,
                stdout=file,
            )
        try:
            until(lambda: ready() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield log
        finally:
            process.terminate()
            process.wait(PATIENCE)

    def answers(self) -> bool:
        return self.play("sealctl status").returncode == 0

    @contextmanager
    def held(self) -> Iterator[str]:
        """The id of a seal whose holder ends when it is recalled."""
        command = HOLD.replace("my-rdma-server", "sleep 1000")
        with self.started(command, lambda: bool(self.seals())):
            [seal] = self.seals()
            yield seal

    def seals(self) -> list[str]:
        return re.findall(r'"id":\s*"([0-9a-f]{24})"', self.play("sealctl ls -o json").stdout)


@pytest.fixture(scope="module")
def stage(xfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("readme"), xfs)
    made.file.write_bytes(os.urandom(MiB))
    with made.file.open("rb") as file:
        os.fsync(file.fileno())
    with made.started(f"{SERVE} --socket {made.socket}", made.answers):
        yield made
    release(ServiceSection(socket=str(made.socket)))
    until(lambda: not (made.directory / "keeper.sock").exists())
    made.file.unlink()


@pytest.mark.kernel
@pytest.mark.parametrize("command", FREE)
def test_what_needs_a_file(stage: Stage, command: str) -> None:
    done = stage.play(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or command == HOLD


@pytest.mark.kernel
@pytest.mark.parametrize("command", HELD)
def test_what_needs_a_seal(stage: Stage, command: str) -> None:
    with stage.held() as seal:
        done = stage.play(command, ("ID", seal))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    until(lambda: not stage.seals())


@pytest.mark.kernel
def test_what_watches(stage: Stage) -> None:
    with stage.started(WATCH, lambda: True) as log:

        def told() -> bool:
            stage.play(HOLD)
            return "granted" in log.read_text()

        until(told)


@pytest.mark.kernel
def test_the_python_of_the_readme(stage: Stage) -> None:
    """It seals the file, hears of the recall, and gives the seal back."""
    [program] = [b for b in blocks(ROOT / "README.md") if b.startswith("from ")]
    script = stage.directory / "holder.py"
    script.write_text(program.replace("/mnt/pmem", str(stage.mount)))
    with stage.started(f"python {script}", lambda: bool(stage.seals())):
        with Client(str(stage.socket)) as client:
            report = client.call(RecallSeals, all=True, wait=True).result
        assert [outcome.state for outcome in report.recalled] == ["returned"]


@pytest.mark.kernel
def test_the_api_from_the_token_to_the_listing(stage: Stage) -> None:
    made = stage.play(TOKEN)
    token = re.search(r"token .*:  (\S+)", made.stdout)
    line = re.search(r"tokens = \[.*\]", made.stdout)
    assert token, made.stdout
    assert line, made.stdout
    principals = stage.directory / "principals.toml"
    principals.write_text(f'[principal.reader]\nrole = "viewer"\nscopes = ["/"]\n{line[0]}\n')
    principals.chmod(0o600)
    log = stage.directory / "sealsvc-api.log"
    pattern = re.compile(r"listening on (\S+)")
    with (
        stage.held() as seal,
        stage.started(f"{API} --port 0", lambda: bool(pattern.search(log.read_text()))),
    ):
        found = pattern.search(log.read_text())
        assert found
        here = ("http://127.0.0.1:8377", found[1])

        def told(command: str) -> str:
            done = stage.play(command, here, ("TOKEN=...", f"TOKEN={token[1]}"), TOKEN=token[1])
            assert done.returncode == 0, done.stderr
            return done.stdout

        until(lambda: stage.play(f"curl -sf {found[1]}/readyz").returncode == 0)
        assert seal[:8] in told(REMOTE)
        assert told(CURL).startswith('{"type":"seal-page","seals":[]')
        assert stage.play(CURL, here, TOKEN="wrong").stdout.count("unauthenticated")
