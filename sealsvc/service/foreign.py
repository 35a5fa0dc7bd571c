"""Clients in other namespaces. A path depends on the mount namespace and root of whoever names it,
a pid on the pid namespace. A request that would mean something else to the service than to its
client is refused."""

from __future__ import annotations

import os
from collections.abc import Callable

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId
from sealsvc.lifecycle.paths import Paths
from sealsvc.linux import native
from sealsvc.linux.host import Host
from sealsvc.linux.processes import Process
from sealsvc.protocol.base import Request


class ForeignNames:
    """Checks the paths and pids of requests against the namespaces of their clients."""

    def __init__(self, host: Host, paths: Paths) -> None:
        self._host, self._paths = host, paths

    async def refuse(
        self, client: Process, request: Request, path: str | None, pid: int | None = None
    ) -> None:
        """Raises Refusal if the path or the pid means something else to the client than to the
        service. Requests for a principal (from the REST API) are not checked: their paths and pids
        are those of this machine."""
        if self._host.simulated or request.principal:
            return
        if pid is not None:
            refuse_other_pids(client)
        if path is not None and not sees_our_files(client):
            await self._paths.run(path, refuse_other_file, client, path, self._host.identify)


def sees_our_files(client: Process) -> bool:
    """Whether the client has the service's mount namespace and root. Reads only links in /proc, and
    touches no file. Raises Refusal `denied` when the links cannot be read."""
    return _link(client, "ns/mnt") == _link(None, "ns/mnt") and _link(client, "root") == _link(
        None, "root"
    )


def refuse_other_pids(client: Process) -> None:
    """Called before a pid that the client names is used. Raises Refusal `bad-request` if the client
    is in another pid namespace, `denied` if that cannot be determined."""
    if _link(client, "ns/pid") != _link(None, "ns/pid"):
        raise Refusal(
            "bad-request",
            "the client is in another pid namespace, where the number names another process: send a"
            " pidfd (holder.pidfd) instead of a pid",
        )


def refuse_other_file(client: Process, path: str, identify: Callable[[str], FileId]) -> None:
    """Called before a path that the client names is used. Raises Refusal `outside-roots` unless the
    path leads to the same file in the client's mount namespace, below the client's root. May
    block."""
    ours = identify(path)
    if _in_view_of(client, path) != (ours.device, ours.inode):
        raise Refusal(
            "outside-roots",
            f"{path} is another file, or none, in the client's mount namespace: open the file there"
            " and send its descriptor",
            {"path": path},
        )


def _in_view_of(client: Process, path: str) -> tuple[int, int] | None:
    try:
        root = os.open(f"/proc/{_living(client)}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = native.open_beneath(root, os.path.normpath(path).lstrip("/"), os.O_PATH)
        finally:
            os.close(root)
    except OSError:
        return None
    try:
        st = os.fstat(fd)
        return st.st_dev, st.st_ino
    finally:
        os.close(fd)


def _link(client: Process | None, name: str) -> str:
    """The target of a link in /proc/PID of the client, or of the service itself (None)."""
    try:
        return os.readlink(f"/proc/{'self' if client is None else _living(client)}/{name}")
    except OSError as error:
        raise _unknown(str(error.strerror)) from None


def _living(client: Process) -> int:
    """The client's pid. Raises Refusal once the client has ended, because another process may have
    its pid by then."""
    if not client.lives:
        raise _unknown("it has ended")
    return client.holder.pid


def _unknown(why: str) -> Refusal:
    return Refusal(
        "denied",
        f"the namespaces of the process that connected cannot be told: {why}; send descriptors and"
        " pidfds instead of paths and pids",
    )
