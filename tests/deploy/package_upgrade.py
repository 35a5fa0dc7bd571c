"""Version N of the package, then N+1, then N again, over seals that are held: on a fresh Debian, by
the interpreter of the package that is installed (docs/upgrade.md).

    /usr/lib/sealsvc/bin/python3 package_upgrade.py N.deb N+1.deb

The client that holds the seals is N's, whatever serves. There is no systemd here: the service is
stopped and started as the page says.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.protocol.seals import List, Return, SealInfo

ROOT = Path("/mnt/pmem")
CONFIG = Path("/root/sealsvc.toml")
GRACE = 3000.0  # seconds: no deadline passes here
PATIENCE = 120.0
TRUNCATE = """
import os, sys
try:
    os.truncate(sys.argv[1], 0)
except OSError as error:
    sys.exit(error.errno)
"""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def answers() -> bool:
    return subprocess.run(["sealctl", "status"], capture_output=True, check=False).returncode == 0


def serve() -> subprocess.Popen[bytes]:
    service = subprocess.Popen(["sealsvc", "serve", "--config", CONFIG])
    until(answers)
    return service


def install(package: str) -> str:
    """The version that is there now."""
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "--allow-downgrades"]
    subprocess.run([*command, package], check=True, stdout=subprocess.DEVNULL)
    told = subprocess.run(["sealctl", "--version"], capture_output=True, check=True, text=True)
    return told.stdout.split()[-1]


def truncates(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/usr/bin/python3", "-I", "-c", TRUNCATE, file])


def seals(client: Client) -> dict[str, SealInfo]:
    return {seal.id: seal for seal in client.call(List).result.seals}


def keepers() -> list[str]:
    """Their pids."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text() == "sealsvc-keeper\n":
                found.append(process.name)
        except OSError:
            pass
    return found


def made(name: str) -> Path:
    path = ROOT / name
    path.write_bytes(os.urandom(1 << 20))
    os.sync()
    return path


def main(now: str, later: str) -> None:
    CONFIG.write_text(
        f'[policy]\nroots = ["{ROOT}"]\nmax_grace = {GRACE}\naccept_risks = ["all"]\n'
    )
    waits, refuses, rung = made("waits"), made("refuses"), made("ring")
    service = serve()
    with Client() as client, RingClient() as ring, rung.open("r+b") as opened:
        first = client.status().version
        waited = client.grant(path=str(waits), kind="shared", grace=GRACE)
        kept = client.grant(path=str(refuses), kind="shared", conflict="refuse")
        registered = ring.register(opened.fileno(), grace=GRACE)
        slot = ring.grant(registered, 0, 4096)
        waiter = truncates(waits)
        until(lambda: seals(client)[waited.seal.id].state == "recalled")
        before, (keeper,) = seals(client), keepers()
        for package in (later, now, later, now):
            version = install(package)
            assert (version == first) == (package is now), version
            # The old service still serves, from files that are gone.
            assert client.status().version != version
            service.terminate()
            assert service.wait(PATIENCE) == 0
            assert truncates(refuses).wait(PATIENCE) == errno.ETXTBSY
            assert slot.valid
            service = serve()
            client.reconnect()
            until(lambda: ring.dispatch() or not ring.connected)
            ring.reconnect()
            assert client.status().version == version
            assert keepers() == [keeper]
            after = seals(client)
            assert after.keys() == before.keys()
            for id, seal in after.items():
                assert (seal.state, seal.path, seal.range) == (
                    before[id].state,
                    before[id].path,
                    before[id].range,
                )
            assert waiter.poll() is None
            assert truncates(refuses).wait(PATIENCE) == errno.ETXTBSY
            assert slot.valid
            ring.grant(registered, 4096, 4096).give_back()
            print(f"package_upgrade: {version} goes on with {len(after)} seals", flush=True)
        os.close(waited.fds[0])
        client.call(Return, seal=waited.seal.id)
        assert waiter.wait(PATIENCE) == 0
        slot.refresh()
        slot.give_back()
        ring.unregister(registered)
        os.close(kept.fds[0])
        client.call(Return, seal=kept.seal.id)
        assert seals(client) == {}
    service.terminate()
    assert service.wait(PATIENCE) == 0
    subprocess.run(["apt-get", "purge", "-y", "-qq", "sealsvc"], check=True)
    print("package_upgrade: done")


if __name__ == "__main__":
    main(*sys.argv[1:])
