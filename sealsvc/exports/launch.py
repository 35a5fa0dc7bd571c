"""Exports begin, end, and are taken up again after their process has died."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Driver, Mapped, Served, Spec, Standing
from sealsvc.exports.drivers import driver_of
from sealsvc.exports.protect import protect
from sealsvc.exports.runtime import Record, Runtime, start_time
from sealsvc.exports.standby import Standbys
from sealsvc.exports.stats import read_stats
from sealsvc.exports.supervise import FAILED, supervise
from sealsvc.exports.timeouts import check_timeouts

ENDED = 10.0  # seconds that an export which is stopped has after SIGTERM
_POLL = 0.01
_LONGEST_LOG = 2000

_starter = os.getpid()  # of `python -m`: main() forks


def prepare(spec: Spec, runtime: Runtime) -> Driver:
    """The driver of an export that can be served here. Refusal otherwise."""
    driver = driver_of(spec, runtime)
    if missing := driver.missing():
        raise Refusal("export-failed", f"exports of type {spec.type} cannot be had here: {missing}")
    if unknown := spec.options.keys() - driver.options.keys():
        known = ", ".join(driver.options) or "none"
        raise Refusal(
            "bad-request", f"type {spec.type} has no option {sorted(unknown)[0]}; it has: {known}"
        )
    check_timeouts(driver)
    driver.check()
    return driver


def create(spec: Spec, runtime: Runtime, patience: float, *, recover: bool = False) -> Record:
    """Start the export's process and wait until the device can be used: at most `patience` seconds,
    after which the process is ended again. It belongs to no terminal and no session of ours."""
    driver = prepare(spec, runtime)
    runtime.make()
    if (found := runtime.find(spec.name)) is not None and not recover:
        raise Refusal("bad-request", f"there is an export {spec.name} already: {_state(found)}")
    command = [sys.executable, "-m", "sealsvc.exports.launch", msgspec.json.encode(spec).decode()]
    with runtime.log(spec.name).open("wb") as log:
        started = subprocess.run(
            [*command, *(["--recover"] if recover else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            check=True,
            env=os.environ | {"SEALSVC_EXPORTS": os.fspath(runtime.directory)},
        )
    process = _Process(int(started.stdout))
    try:
        return _await(process, driver, runtime, patience)
    except BaseException:
        process.end(spec.grace)
        if not recover and (made := runtime.find(spec.name)) is not None:
            driver.delete(made)
        if not recover:
            runtime.remove(spec.name)
        raise
    finally:
        process.close()


class _Process:
    """The process of an export, which is nobody's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1

    def ended(self, seconds: float = 0.0) -> bool:
        """Within so many seconds."""
        if self._pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def end(self, patience: float) -> None:
        """SIGTERM, and SIGKILL after `patience` seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended():
                return
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            if self.ended(patience):
                return
        raise Refusal("export-failed", f"process {self.pid} does not end: it waits in the kernel")

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


def _await(process: _Process, driver: Driver, runtime: Runtime, patience: float) -> Record:
    name, deadline = driver.spec.name, time.monotonic() + patience
    while time.monotonic() < deadline:
        record = runtime.find(name)
        ours = record is not None and process.pid in (record.pid, record.supervisor)
        if record is not None and ours and (device := driver.ready(record)):
            if record.device != device:
                record = msgspec.structs.replace(record, device=device)
                runtime.write(record)
            return record
        if process.ended():
            raise Refusal(
                "export-failed", f"export {name} did not start: {_end_of_log(runtime, name)}"
            )
        time.sleep(_POLL)
    raise Refusal("export-failed", f"export {name} was not ready within {patience:g} s")


def _end_of_log(runtime: Runtime, name: str) -> str:
    text = runtime.log(name).read_bytes()[-_LONGEST_LOG:].decode(errors="replace").strip()
    return text or "it said nothing"


def _state(record: Record) -> str:
    return f"process {record.pid} serves it" if record.lives else "its process has died (recover)"


def run(spec: Spec, runtime: Runtime, *, recover: bool = False) -> int:
    """Serve, in this process, until SIGTERM, or with `restart` in children of it. An exit status;
    where a program serves it does not come back."""
    if not spec.restart:
        return _serve(spec, runtime, recover, 0)

    def served(child: int) -> bool:
        stats = read_stats(runtime.stats(spec.name))
        return stats is not None and stats.pid == child and stats.seals > 0

    ours = os.getpid()
    driver = prepare(spec, runtime)
    if isinstance(driver, Standing):
        runtime.make()
        with _locked(runtime, spec.name) as lock:

            def begins(child: int) -> None:
                runtime.write(_record(spec, runtime, child, ours, recover=recover))

            return Standbys(driver, lock, begins, served).serve(recover=recover)
    return supervise(lambda again: _serve(spec, runtime, again, ours), served, recover=recover)


def _serve(spec: Spec, runtime: Runtime, recover: bool, supervisor: int) -> int:
    driver = prepare(spec, runtime)
    runtime.make()
    with _locked(runtime, spec.name) as lock:
        record = _record(spec, runtime, os.getpid(), supervisor, recover=recover)
        runtime.write(record)
        protect(lock_memory=isinstance(driver, Mapped))
        if isinstance(driver, Served):
            command, environment = driver.program(recover)
            os.set_inheritable(lock, True)
            os.execvpe(command[0], command, os.environ | environment)
        assert isinstance(driver, Mapped)
        from sealsvc.exports.holder import hold

        return hold(driver, record, recover=recover)


def _record(spec: Spec, runtime: Runtime, pid: int, supervisor: int, *, recover: bool) -> Record:
    """Of an export that the process `pid` serves. What an earlier one left goes on being known."""
    found = runtime.find(spec.name) if recover else None
    return Record(
        spec=spec,
        pid=pid,
        start_time=start_time(pid),
        supervisor=supervisor,
        supervisor_start_time=start_time(supervisor) if supervisor else 0,
        left=found.left if found is not None else {},
    )


@contextmanager
def _locked(runtime: Runtime, name: str) -> Iterator[int]:
    """One process for an export: the lock goes with it, or with the program that it becomes."""
    fd = os.open(runtime.lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal("bad-request", f"another process serves export {name}") from None
        yield fd
    finally:
        os.close(fd)


def stop(name: str, runtime: Runtime, patience: float, *, force: bool = False) -> None:
    """End an export: SIGTERM, and SIGKILL after `patience` seconds. Refused while the device is
    known to be in use, unless by `force`."""
    record = runtime.read(name)
    driver = driver_of(record.spec, runtime)
    if not force and (who := driver.in_use(record)):
        raise Refusal(
            "export-failed", f"export {name} is in use: {who} (--force fails its requests)"
        )
    if record.is_supervised:  # it would start another
        _end(record.supervisor, lambda: record.is_supervised, patience)
        record = runtime.read(name)
    _end(record.pid, lambda: record.lives, patience)
    driver.delete(runtime.read(name))
    runtime.remove(name)


def _end(pid: int, lives: Callable[[], bool], patience: float) -> None:
    process = _Process(pid)
    try:
        if lives():  # asked after it was opened: by then the number is its
            process.end(patience)
    finally:
        process.close()


def recover(name: str, runtime: Runtime, patience: float) -> Record:
    """Serve again an export whose process has died; requests that wait for it go on."""
    record = runtime.read(name)
    if record.lives:
        raise Refusal("bad-request", f"export {name} needs none: {_state(record)}")
    if record.is_supervised:
        raise Refusal("bad-request", f"export {name} needs none: its supervisor starts it again")
    return create(record.spec, runtime, patience, recover=True)


def main() -> int:
    """In a process of its own, whose parent has ended: nbdkit in the foreground ends with the
    parent that it had when it began (PR_SET_PDEATHSIG)."""
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    if child := os.fork():
        print(child)
        return 0
    os.dup2(2, 1)
    while os.getppid() == _starter:
        time.sleep(_POLL / 10)
    try:
        return run(spec, Runtime(), recover="--recover" in sys.argv[2:])
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
