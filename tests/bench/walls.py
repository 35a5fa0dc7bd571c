"""The walls of the REST API, measured: `python -m tests.bench.walls`.

A real service on a simulated system and the real API before it. What is measured:
* 4,096 kept events replayed: the first byte (goal: 100 ms), all of them (none lost);
* how long an operator's new connection and two requests take beside 512 silent sockets, 64 slow
  bodies and 256 greedy listeners (goal: 1 s, the longest of all rounds);
* from the change of the principals file to the end of a stream of who was revoked (goal: 1 s):
  events over HTTP, and over a WebSocket;
* whether the time of an answer tells what is forbidden from what is missing: 0 is not at all, 0.5
  always (goal: within 5 standard deviations of 0).

A time on a busy machine says little: run it on a quiet one. A goal that is missed is printed so.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from sealsvc.client import Client
from sealsvc.protocol.events import PastEvents
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Simulate
from tests.api import crowd
from tests.api.conftest import write_principals
from tests.api.running import PATIENCE, Front, front, service, simulated
from tests.api.secrecy import told_apart

KEPT = 4096  # events (limits.event_history)
LOOK = 0.25  # seconds between two looks of the API at the principals file
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def principals(directory: Path, **tokens: str) -> Path:
    """An admin, one who is confined to /sim/guest, and others with the given tokens."""
    everything = {"role": "admin", "scopes": ["/"], "holders": ["*"], "requests_per_second": 1e6}
    scoped = {"role": "operator", "scopes": ["/sim/guest"], "requests_per_second": 1e6}
    return write_principals(
        directory / "principals.toml",
        admin={**everything, "token": "admin"},
        scoped={**scoped, "token": "scoped"},
        **{name: {**everything, "token": token} for name, token in tokens.items()},
    )


def told(name: str, found: float, goal: float, unit: str, more: str = "") -> bool:
    met = found <= goal
    print(f"{name:<34}{found:>10.3f} {unit:<3} goal {goal:<7g} {'met' if met else 'MISSED'}{more}")
    return met


def ask(there: Front, path: str, token: str, headers: str = "") -> socket.socket:
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", int(there.base.rpartition(":")[2])))
    lines = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    sock.sendall(f"{lines}{headers}\r\n".encode())
    return sock


def fill(control: Client) -> int:
    """Have the service publish more events than it keeps; the number of the newest."""
    control.call(Simulate, action="create", path="/sim/told", size=1 << 20)
    while (newest := control.call(PastEvents, since=0, limit=1).result.seq) < KEPT + 100:
        reply = control.grant(path="/sim/told", kind="shared", tag="x" * 200)
        os.close(reply.fds[0])
        control.call(Return, seal=reply.seal.id)
    return int(newest)


def replay(there: Front, newest: int, rounds: int) -> list[bool]:
    first, whole, lost = [], [], 0
    for _ in range(rounds):
        begun, data, seqs = time.perf_counter(), b"", list[int]()
        with ask(there, "/v1/events?since=0", "admin") as sock:
            while b"\nevent: " not in data:
                data += sock.recv(1 << 20)
            first.append(time.perf_counter() - begun)
            while not seqs or seqs[-1] < newest:
                data += sock.recv(1 << 20)
                seqs = [int(seq) for seq in re.findall(rb"\nid: [0-9a-f]{8}\.([0-9]+)\n", data)]
            whole.append(time.perf_counter() - begun)
        lost += len(set(range(newest - KEPT + 1, newest + 1)) - set(seqs))
    return [
        told("replay: first byte", float(np.median(first)), 0.1, "s"),
        told("replay: events lost", lost, 0, "", f" (all {KEPT} in {np.median(whole):.3f} s)"),
    ]


def revoked(directory: Path, there: Front, newest: int, rounds: int) -> list[bool]:
    """A stream of who is in the file, then of nobody; each way several times."""
    met = []
    for name, path, headers in (
        ("SSE", f"/v1/events?since={newest}", ""),
        ("WebSocket", f"/v1/events/ws?since={newest}", UPGRADE),
    ):
        took = []
        for number in range(rounds):
            token = f"{name} {number}"
            principals(directory, gone=token)
            time.sleep(2 * LOOK)
            with ask(there, path, token, headers) as sock:
                assert re.match(rb"HTTP/1.1 (200|101) ", sock.recv(4096))
                time.sleep(0.3)
                begun = time.perf_counter()
                principals(directory)
                _ends(sock)
                took.append(time.perf_counter() - begun)
        met.append(told(f"revoked: {name}", max(took), 1.0, "s", f" (the longest of {rounds})"))
    return met


def crowded(directory: Path, rounds: int) -> list[bool]:
    """An operator alone, and beside the crowd, against an API of its own."""
    with simulated(directory) as there, ExitStack() as stack:
        crowd.serves(there)
        alone = [crowd.serves(there) for _ in range(rounds)]
        heard = crowd.gather(stack, there)
        beside = []
        for _ in range(rounds):
            beside.append(crowd.serves(there))
            stack.enter_context(crowd.opened(there))
        more = f" (median {np.median(beside):.3f}, alone {np.median(alone):.3f})"
        return [
            told("operator beside a crowd", max(beside), 1.0, "s", more),
            told("greedy listeners heard", heard, crowd.SHARE, ""),
        ]


def _ends(sock: socket.socket) -> None:
    """Wait for the last chunk, a close frame, or the end of the connection."""
    data = b""
    while (part := sock.recv(1 << 16)) and b"0\r\n\r\n" not in data + part:
        data += part
        if data[-4:-3] == b"\x88":
            return


def hidden(there: Front, samples: int) -> list[bool]:
    """`forbidden` beside `missing`, for a principal that is confined to /sim/guest."""
    with there.client() as control, ExitStack() as stack:
        control.call(Simulate, action="create", path="/sim/secret", size=1 << 20)
        control.call(Simulate, action="create", path="/sim/guest/own", size=1 << 20)
        reply = control.grant(path="/sim/secret", kind="shared")
        os.close(reply.fds[0])
        seal = reply.seal.id
        http = stack.enter_context(there.http("scoped"))
        admin = stack.enter_context(there.http("admin"))
        key = admin.get("/v1/files").json()["files"][0]["key"]
        other = re.sub("-(.)", r"-1\1", key, count=1)
        bound = 5 / np.sqrt(6 * samples)
        met = []
        for name, forbidden, missing in (
            ("a path", "/v1/files?path=/sim/secret", "/v1/files?path=/sim/guest/none"),
            ("a path outside", "/v1/files?path=/sim/secret", "/v1/files?path=/sim/none"),
            ("a seal", f"/v1/seals/{seal}", f"/v1/seals/{'0' * len(seal)}"),
            ("a file's key", f"/v1/files/{key}", f"/v1/files/{other}"),
            ("a holder", f"/v1/holders/{os.getpid()}", "/v1/holders/2147483647"),
        ):
            assert {http.get(path).status_code for path in (forbidden, missing)} == {404}, name
            get = (functools.partial(http.get, path) for path in (forbidden, missing))
            apart = abs(told_apart(*get, samples) - 0.5)
            met.append(told(f"told apart by time: {name}", apart, round(float(bound), 3), ""))
        control.call(Return, seal=seal)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=1000, help="of each of two answers")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, service(Path(name), "--sim"):
        directory = Path(name)
        with front(directory, principals(directory)) as there:
            with there.client() as control:
                newest = fill(control)
            met = replay(there, newest, asked.rounds)
            met += revoked(directory, there, newest, asked.rounds)
            met += hidden(there, asked.samples)
    with tempfile.TemporaryDirectory() as name:
        met += crowded(Path(name), asked.rounds)
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
