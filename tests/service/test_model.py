"""Random grants, conflicts and returns of real seals, against a reference model of the rules."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from sealsvc.client import Client
from sealsvc.doctor import syscalls
from sealsvc.protocol.seals import Return, Show

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

BLOCK = 65536
BLOCKS = 8
ranges = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(
    lambda r: (r[0], min(r[1], BLOCKS - r[0]))
)


class Model:
    """The rules in their simplest form: which blocks of one file are sealed, by whom."""

    def __init__(self) -> None:
        self.seals: dict[str, tuple[int, int]] = {}

    def touches(self, start: int, count: int) -> bool:
        return any(s < start + count and start < s + n for s, n in self.seals.values())

    def reaches_beyond(self, size: int) -> bool:
        return any(s + n > size for s, n in self.seals.values())


def machine_for(client: Client, path: Path) -> type[RuleBasedStateMachine]:
    class Seals(RuleBasedStateMachine):
        held = Bundle("held")

        def __init__(self) -> None:
            super().__init__()
            self.model = Model()
            path.write_bytes(os.urandom(BLOCK * BLOCKS))
            self.fd = os.open(path, os.O_RDWR)
            os.fsync(self.fd)

        def refill(self) -> None:
            """Make every block whole again; only blocks that nobody sealed were harmed."""
            for block in range(BLOCKS):
                os.pwrite(self.fd, bytes([block]) * BLOCK, block * BLOCK)
            os.fsync(self.fd)

        @rule(target=held, span=ranges)
        def grant(self, span: tuple[int, int]) -> str:
            start, count = span
            fields = {"offset": start * BLOCK, "length": count * BLOCK}
            reply = client.grant(path=str(path), kind="shared", conflict="refuse", **fields)
            os.close(reply.fds[0])
            self.model.seals[reply.seal.id] = span
            return reply.seal.id

        @rule(seal=consumes(held))
        def give_back(self, seal: str) -> None:
            assert client.call(Return, seal=seal).seal.state == "returned"
            del self.model.seals[seal]

        @rule(seal=held)
        def look(self, seal: str) -> None:
            assert client.call(Show, seal=seal).seal.state == "granted"

        @rule(span=ranges)
        def punch(self, span: tuple[int, int]) -> None:
            start, count = span
            self.expect(
                self.model.touches(start, count),
                lambda: syscalls.fallocate(self.fd, 3, start * BLOCK, count * BLOCK),
            )

        @rule(size=st.integers(0, BLOCKS))
        def truncate(self, size: int) -> None:
            self.expect(
                self.model.reaches_beyond(size), lambda: os.ftruncate(self.fd, size * BLOCK)
            )

        @rule(block=st.integers(0, BLOCKS - 1))
        def write(self, block: int) -> None:
            assert os.pwrite(self.fd, b"x" * BLOCK, block * BLOCK) == BLOCK

        def expect(self, conflict: bool, operation: object) -> None:
            # The operation is another process's: the service sees who runs it, not who asked.
            pid = os.fork()
            if pid == 0:
                try:
                    operation()  # type: ignore[operator]
                except OSError as error:
                    os._exit(error.errno or 255)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status == (errno.ETXTBSY if conflict else 0)
            self.refill()

        def teardown(self) -> None:
            for seal in self.model.seals:
                client.call(Return, seal=seal)
            os.close(self.fd)

    return Seals


def test_the_service_follows_the_model(client: Client, file: Path) -> None:
    run_machine(
        machine_for(client, file),
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
