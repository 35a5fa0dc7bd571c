"""The observer: reads the maps of seals whose holders are certain of them, and asks no service.

Holders tell it, by a socket, that a seal was granted (with a descriptor of the file and the map
that they saw), and that they are about to return it: they wait for its word before they do. In
between, while the holder lives and the seal's time is not up, nothing may move.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak import fiemap

PAUSE = 0.002  # seconds between two rounds


@dataclass
class Watched:
    seal: str
    fd: int
    start: int
    length: int
    map: fiemap.Map
    until: float  # CLOCK_BOOTTIME
    what: str


@dataclass
class Teller:
    """A holder that is connected, while it lives."""

    sock: socket.socket
    pid: int
    pidfd: int
    watched: dict[str, Watched] = field(default_factory=dict)

    def alive(self) -> bool:
        """Whether it has its memory still. A process that exits gives up its memory and its
        descriptors, and with these its seals, before its pidfd tells (kernel/exit.c, do_exit)."""
        try:
            maps = Path(f"/proc/{self.pid}/maps").read_bytes()
        except OSError:
            return False
        return bool(maps) and not select.select([self.pidfd], [], [], 0)[0]

    def drop(self, seal: str) -> None:
        if found := self.watched.pop(seal, None):
            os.close(found.fd)

    def close(self) -> None:
        for seal in tuple(self.watched):
            self.drop(seal)
        os.close(self.pidfd)
        self.sock.close()


class Observer:
    def __init__(self, path: str, directory: Path) -> None:
        self.directory = directory
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listening.bind(path)
        self.listening.listen(64)
        self.listening.setblocking(False)
        self.tellers: list[Teller] = []
        self.reads = self.seals = self.drift = 0
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            self._accept()
            for teller in tuple(self.tellers):
                self._look(teller)
                if not self._hear(teller):
                    self.tellers.remove(teller)
                    teller.close()
            time.sleep(PAUSE)
        result = {"reads": self.reads, "seals": self.seals, "drift": self.drift}
        (self.directory / "observer.json").write_text(json.dumps(result))

    def _accept(self) -> None:
        try:
            sock, _ = self.listening.accept()
        except BlockingIOError:
            return
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        sock.setblocking(False)
        try:
            self.tellers.append(Teller(sock, pid, os.pidfd_open(pid)))
        except ProcessLookupError:
            sock.close()

    def _hear(self, teller: Teller) -> bool:
        """False when it is gone."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(teller.sock, 65536, 1)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            message = json.loads(data)
            if message["op"] == "granted":
                self.seals += 1
                teller.watched[message["seal"]] = Watched(
                    message["seal"], fds[0], message["start"], message["length"],
                    tuple(tuple(extent) for extent in message["map"]), message["until"],
                    message["what"],
                )  # fmt: skip
                continue
            if found := teller.watched.get(message["seal"]):
                self._compare(teller, found)
            teller.drop(message["seal"])
            try:
                teller.sock.send(b"dropped")
            except OSError:
                return False

    def _look(self, teller: Teller) -> None:
        for watched in tuple(teller.watched.values()):
            if not self._compare(teller, watched):
                teller.drop(watched.seal)

    def _compare(self, teller: Teller, watched: Watched) -> bool:
        """False when there is nothing more to be certain of."""
        now = fiemap.read(watched.fd, watched.start, watched.length)
        # Only then: what was seen while both were so, was seen during the seal's certain life.
        if time.clock_gettime(time.CLOCK_BOOTTIME) >= watched.until or not teller.alive():
            return False
        self.reads += 1
        if now == watched.map:
            return True
        self.drift += 1
        path = os.readlink(f"/proc/self/fd/{watched.fd}")
        with (self.directory / "drift.log").open("a") as log:
            log.write(f"{path}: seal {watched.seal} of {teller.pid} ({watched.what}):"
                      f" {watched.map} became {now}\n")  # fmt: skip
        return False


class Told:
    """The holder's end."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(path)

    def granted(self, seal: str, fd: int, span: tuple[int, int], until: float, what: str) -> None:
        start, length = span
        found = fiemap.read(fd, start, length)
        message = {"op": "granted", "seal": seal, "start": start, "length": length}
        message |= {"map": found, "until": until, "what": what}
        # A description is shared by what passes it on; that is all right: it is not mapped.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self.sock.sendmsg([json.dumps(message).encode()], rights)

    def over(self, seal: str) -> None:
        """From now on its holder is not certain of it any more."""
        self.sock.send(json.dumps({"op": "over", "seal": seal}).encode())
        self.sock.recv(64)


def main() -> None:
    observer = Observer(sys.argv[1], Path(sys.argv[2]))

    def stop(*_: object) -> None:
        observer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    print("observing", flush=True)
    observer.run()


if __name__ == "__main__":
    main()
