"""The second process: `python -m sealsvc.doctor.subject FD`.

A server stays warm and forks one child for each operation, so that none pays for the start of an
interpreter. FD is a SOCK_SEQPACKET socket to the doctor. A datagram `{"play": ...}` comes with a
socket for the child and is answered `{"pid": N}`; `{"end": N}` kills that child with whatever it
started, and is answered when nothing of it is left (`{"left": bool}`).

The child does what must come before the grant, says `{"ready": true}`, and after one datagram (the
"go") runs the operation and tells `{"errno": int | null, "failed": bool, "detail": str,
"seconds": float}`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from sealsvc.doctor import syscalls
from sealsvc.doctor.acts_tools import ToolFailed
from sealsvc.doctor.operations import CATALOGUE, Operation, Route
from sealsvc.doctor.scene import Scene

_END_WITHIN = 20.0  # seconds: a killed child in uninterruptible sleep must not stop the table


def _enter_namespace(scene: Scene) -> None:
    """Reach the file through a bind mount that only this process sees."""
    syscalls.unshare_mounts()
    elsewhere = scene.beside("namespace")
    os.mkdir(elsewhere)
    syscalls.mount(os.path.dirname(scene.path), elsewhere, "", syscalls.MS_BIND)
    scene.path = os.path.join(elsewhere, os.path.basename(scene.path))


def _open(operation: Operation, scene: Scene) -> None:
    if operation.flags is not None:
        assert scene.fd >= 0
    if operation.begin:
        operation.begin(scene)


def _before(operation: Operation, scene: Scene) -> None:
    if operation.route is Route.NAMESPACE:
        _enter_namespace(scene)
    if operation.early:
        _open(operation, scene)


def _act(operation: Operation, scene: Scene) -> None:
    if not operation.early:
        _open(operation, scene)
    operation.act(scene)


def _outcome(error: Exception | None, started: float) -> dict[str, Any]:
    code, words = None, str(error) if error else ""
    if isinstance(error, OSError):
        code, words = error.errno, error.strerror or words
    return {
        "errno": code,
        "failed": error is not None,
        "detail": words,
        "seconds": time.monotonic() - started,
    }


def _play(job: dict[str, Any], channel: socket.socket) -> None:
    operation, scene = CATALOGUE[job["operation"]], Scene(**job["scene"])
    started = time.monotonic()
    try:
        scene.flags = operation.flags
        _before(operation, scene)
        channel.send(json.dumps({"ready": True}).encode())
        if not channel.recv(16):
            return
        started = time.monotonic()
        _act(operation, scene)
    except (OSError, ToolFailed) as error:
        channel.send(json.dumps(_outcome(error, started)).encode())
    else:
        channel.send(json.dumps(_outcome(None, started)).encode())


def _child(job: dict[str, Any], channel: socket.socket, server: socket.socket) -> None:
    """Never returns. Its own process group is what `end` kills."""
    os.setpgid(0, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    server.close()
    status = 1
    try:
        _play(job, channel)
        status = 0
    except Exception as error:  # the child's supervisor: a defect must reach the report
        channel.send(json.dumps(_outcome(RuntimeError(repr(error)), time.monotonic())).encode())
    finally:
        os._exit(status)


def _fork(job: dict[str, Any], channel: socket.socket, server: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        _child(job, channel, server)
    os.setpgid(pid, pid)  # in both, so that neither can come too late
    return pid


def _end(pid: int) -> bool:
    """Kill the group of `pid`, a child not reaped yet, so that its number is not another's; true
    if some of it would not die. The group's orphans are ours to reap: we are their subreaper."""
    deadline = time.monotonic() + _END_WITHIN
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        try:
            if os.waitpid(-pid, os.WNOHANG)[0] == 0:
                time.sleep(0.0005)
        except ChildProcessError:
            return False
    return True


def serve(server: socket.socket) -> None:
    alive: set[int] = set()
    while True:
        data, fds, _, _ = socket.recv_fds(server, 64 * 1024, 1)
        if not data:
            break
        message = json.loads(data)
        if "end" in message:
            alive.discard(message["end"])
            answer: dict[str, Any] = {"left": _end(message["end"])}
        else:
            with socket.socket(fileno=fds[0]) as channel:
                answer = {"pid": _fork(message["play"], channel, server)}
            alive.add(answer["pid"])
        server.send(json.dumps(answer).encode())
    for pid in alive:
        _end(pid)


def main() -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the doctor's, who ends us in order
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as server:
        serve(server)


if __name__ == "__main__":
    main()
