"""A child process that waits, before exec, for the descriptor it is to hold.

The seal is granted to the child, so the child must exist before the descriptor does; and CMD must
not run before the seal is there. So it forks, stops at a socket, and execs on arrival.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from typing import NoReturn

NOT_FOUND = 127
NOT_EXECUTABLE = 126  # both as the shell has them

_LOWEST_FD = 3


class StoppedChild:
    """`pidfd` becomes readable when the child has ended. Use exactly one of start and abandon."""

    def __init__(self, command: tuple[str, ...], target_fd: int | None) -> None:
        # Both ends close on exec: the end of the file tells the parent that exec succeeded, and
        # the child that the parent is gone.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with named_as(command[0]):
            self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _become(theirs, command, target_fd)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)

    def start(self, fd: int, seal: str) -> None:
        """Hand over `fd` (the caller still closes its own) and let the command begin."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        # Killed while it waited? Its status will say so.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendmsg([seal.encode()], [rights])

    def abandon(self) -> None:
        """End the child unstarted: it leaves when the channel closes."""
        self._channel.close()
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)

    def reap(self) -> tuple[int, OSError | None]:
        """Wait for the end: the exit status as a shell gives it, and why exec failed, if it did."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        failure = self._exec_failure()
        os.close(self.pidfd)
        self._channel.close()
        return (code if code >= 0 else 128 - code), failure

    def _exec_failure(self) -> OSError | None:
        try:
            number = self._channel.recv(16)
        except ConnectionResetError:  # it was killed with our message unread
            return None
        return OSError(int(number), os.strerror(int(number))) if number else None


@contextlib.contextmanager
def named_as(command: str) -> Iterator[None]:
    """The process, and what it forks here, has the name that exec will give it: the service reads a
    holder's name at the grant, which comes before exec."""
    with open("/proc/self/comm", "r+b", buffering=0) as comm:
        before = comm.read().rstrip(b"\n")
        comm.write(os.fsencode(os.path.basename(command))[:15])
    ours = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == ours:
            with open("/proc/self/comm", "wb", buffering=0) as comm:
                comm.write(before)


def _become(channel: socket.socket, command: tuple[str, ...], target_fd: int | None) -> NoReturn:
    """The child's whole life. Never returns into the parent's code, whatever happens."""
    code = NOT_EXECUTABLE
    try:
        _default_signals()
        seal, fd = _await(channel)
        if fd is None:
            os._exit(0)
        channel, number = _place(channel, fd, target_fd)
        os.environ["SEALSVC_FD"] = str(number)
        os.environ["SEALSVC_SEAL"] = seal
        os.execvp(command[0], command)
    except OSError as error:
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        channel.send(str(error.errno).encode())
    finally:
        os._exit(code)


def _default_signals() -> None:
    # Python ignores these two, and exec would hand that down; and its own handler for Ctrl-C must
    # not run here. What the user ignores (nohup, a shell's background) stays ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _await(channel: socket.socket) -> tuple[str, int | None]:
    # Not socket.recv_fds: in Python 3.11 it drops its flags, and the command would inherit the
    # received number besides its own.
    try:
        data, ancillary, flags, _ = channel.recvmsg(64, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return "", None
    if flags & socket.MSG_CTRUNC:  # it arrived without the descriptor
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for _, _, rights in ancillary:
        return data.decode(), array.array("i", rights)[0]
    return "", None


def _place(channel: socket.socket, fd: int, target_fd: int | None) -> tuple[socket.socket, int]:
    """Give the descriptor its final, inheritable number; the received one closes on exec."""
    if target_fd is None:
        return channel, fcntl.fcntl(fd, fcntl.F_DUPFD, _LOWEST_FD)
    if channel.fileno() == target_fd:
        channel = channel.dup()  # exec's failure must still find its way back
    if fd == target_fd:
        os.set_inheritable(fd, True)  # dup2 to itself would leave it to close on exec
    else:
        os.dup2(fd, target_fd)
    return channel, target_fd
