"""What the kernel skips: a fentry program does not run where a preempted task is inside it.

Here a real-time task interrupts others within the programs, thousands of times, on one CPU.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from sealsvc.doctor import syscalls
from sealsvc.enforce.bpf import BpfEnforcer
from sealsvc.linux.host import Target
from tests.lab.test_bpf import (
    CHUNK,
    INSIDE,
    KEEP,
    OUTSIDE,
    PUNCH,
    arm,
    bpf,
    guard,
    host,
    in_child,
    opened,
    remove,
    scratch,
    sealed_map,
    write,
)

pytestmark = [pytest.mark.lab(cpus=1), pytest.mark.kernel, pytest.mark.slow]

SECONDS = 2.0


class Held(NamedTuple):
    target: Target
    sealed: int
    other: int
    third: int
    fourth: int
    skipped: Callable[[], bool]  # has the kernel skipped a program since?


# By name: what is tried with descriptors of the sealed file and of another, and what others do in
# the same programs meanwhile.
ACTS: dict[str, Callable[[int, int], object]] = {
    "punch": lambda fd, other: syscalls.fallocate(fd, PUNCH | KEEP, INSIDE, CHUNK),
    "madvise": lambda fd, other: remove(fd, INSIDE),
    "unresvsp": lambda fd, other: syscalls.unreserve_space(fd, INSIDE, CHUNK),
    "copy": lambda fd, other: os.copy_file_range(other, fd, CHUNK, 0, INSIDE),
    "copy-from": lambda fd, other: os.copy_file_range(fd, other, CHUNK, INSIDE, 0),
    "clone": lambda fd, other: syscalls.clone_range(fd, other, INSIDE, CHUNK),
    "clone-from": lambda fd, other: syscalls.clone(other, fd),
    "dedupe": lambda fd, other: syscalls.dedupe_range(fd, other, INSIDE, CHUNK),
    "exchange": lambda fd, other: syscalls.exchange_range(other, fd, INSIDE, CHUNK),
}


@pytest.fixture(scope="module")
def root(loaded: BpfEnforcer) -> Iterator[Path]:
    with scratch("xfs") as point:
        arm(loaded, point)
        yield point


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfEnforcer]:
    host()  # its descriptors belong to the module, not to the first test
    enforcer = bpf()
    assert enforcer.probe() == ""
    yield enforcer
    enforcer.stop()


@pytest.fixture
def held(root: Path, loaded: BpfEnforcer) -> Iterator[Held]:
    """A seal on the first of four files. Their contents are equal, which a dedupe wants."""
    names = ["sealed", "other", "third", "fourth"]
    content = write(root / names[0]).read_bytes()
    for name in names[1:]:
        (root / name).write_bytes(content)
    skips = loaded.skips()
    with ExitStack() as stack:
        files = [os.open(root / name, os.O_RDWR) for name in names]
        for fd in files:
            stack.callback(os.close, fd)
        target = stack.enter_context(opened(root))
        hold = loaded.hold(target, guard())
        stack.callback(hold.release)
        yield Held(target, *files, lambda: loaded.skips() > skips)
    assert loaded.skips() > skips, "the kernel skipped nothing: nothing was tried here"
    assert loaded.missed() == 0


@contextmanager
def forever(function: Callable[[], object]) -> Iterator[None]:
    """In another process, over and over, until the end."""
    pid = os.fork()
    if pid == 0:
        while True:
            with suppress(OSError):
                function()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def interrupting(held: Held, function: Callable[[], object], passes: bool = False) -> None:
    """Calls `function` at random moments, as a task that preempts every other, for some seconds,
    and on a slow machine for longer, until something was skipped. It passes, or is refused, always.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    chance = random.Random(5)
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < SECONDS or (
        passed < 30 * SECONDS and not held.skipped()
    ):
        time.sleep(chance.random() * 0.002)
        error = 0
        try:
            function()
        except OSError as caught:
            error = caught.errno or -1
        if error != (0 if passes else errno.ETXTBSY):
            raise OSError(error or errno.EEXIST, "it passed, or was refused")


@pytest.mark.parametrize("name", ACTS)
def test_what_is_skipped_is_refused(held: Held, name: str) -> None:
    act = ACTS[name]
    before = sealed_map(held.target)
    # Two: one is in the program that begins it, the other perhaps in the one that ends it.
    with (
        forever(lambda: act(held.third, held.fourth)),
        forever(lambda: act(held.fourth, held.third)),
    ):
        # In a process of its own: the one that loaded the programs is exempt.
        error = in_child(lambda: interrupting(held, lambda: act(held.sealed, held.other)))
    assert error == 0, os.strerror(error)
    assert sealed_map(held.target) == before


def punch_outside(fd: int) -> None:
    syscalls.fallocate(fd, PUNCH | KEEP, OUTSIDE, CHUNK)


def test_beside_the_sealed_range_it_passes_all_the_same(held: Held) -> None:
    """By fallocate(2), whose registers tell all."""
    with (
        forever(lambda: punch_outside(held.third)),
        forever(lambda: punch_outside(held.fourth)),
    ):
        error = in_child(
            lambda: interrupting(held, lambda: punch_outside(held.sealed), passes=True)
        )
    assert error == 0, os.strerror(error)


def test_an_end_that_is_skipped_holds_no_grant_up(held: Held, loaded: BpfEnforcer) -> None:
    """What the program that was skipped leaves listed as under way is seen to be over."""
    done, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            interrupting(held, lambda: punch_outside(held.sealed), passes=True)
        os.write(told, b".")
        signal.pause()
        os._exit(1)
    try:
        with (
            forever(lambda: punch_outside(held.third)),
            forever(lambda: punch_outside(held.fourth)),
        ):
            os.read(done, 1)
        loaded.hold(held.target, guard(8)).release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(done)
        os.close(told)
