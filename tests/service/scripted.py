"""A holder in a process of its own that does what it is told, line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealsvc.core.model import ByteRange
from tests.support.waiting import PATIENCE

_SCRIPT = """
import json, mmap, os, signal, sys, time
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import *
from sealsvc.core.model import ByteRange
client = Client(sys.argv[1])
fields = json.loads(sys.argv[3])
length = fields.get("length", 0)
reply = client.grant(path=sys.argv[2], **fields)
seal, fd, mapping = reply.seal.id, reply.fds[0], None
print(json.dumps(seal), flush=True)
for line in sys.stdin:
    value = None
    try:
        try:
            value = eval(line)
        except SyntaxError:
            exec(line)
    except Refusal as refusal:
        value = refusal.code
    print(json.dumps(value, default=str), flush=True)
"""


class Holder:
    """`seal` is what it holds; `fd`, `mapping`, `client` are names that its lines may use."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process, self.path = process, path
        self.seal = self._answer()

    def do(self, line: str) -> Any:
        """The value of the expression, a Refusal's code, or None of a statement."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def map(self) -> None:
        self.do("mapping = mmap.mmap(fd, length)")

    def unmap(self) -> None:
        self.do("mapping = mapping and mapping.close()")

    def let_go(self) -> None:
        """Nothing of it is left, but the seal."""
        self.unmap()
        self.do("os.close(fd)")

    def give_back(self, part: ByteRange | None = None) -> Any:
        which = "" if part is None else f", range=ByteRange({part.offset}, {part.length})"
        return self.do(f"client.call(Return, seal=seal{which}).seal.state")

    def recalls(self, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        """Those that have come; waits for the first."""
        line = (
            f"[json.loads(encode(next(client.pushes({seconds}))))] +"
            " [json.loads(encode(p)) for p in client.pushes(0)]"
        )
        found: list[dict[str, Any]] = self.do(line)
        return found

    def leave_a_child(self) -> int:
        """The pid of a child that keeps the mapping and the descriptor, until it is killed."""
        self.map()
        self.do("child = os.fork() or (time.sleep(600), os._exit(0))")
        return int(self.do("child"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the holder has ended"
        return json.loads(line)


@contextmanager
def scripted(socket: str, path: Path, **fields: Any) -> Iterator[Holder]:
    fields.setdefault("kind", "shared")
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, socket, str(path), json.dumps(fields)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Holder(process, path)
    finally:
        process.kill()
        process.communicate()
