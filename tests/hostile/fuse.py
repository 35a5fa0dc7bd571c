"""A FUSE file system of one file, whose server answers what a test wants answered (fuse(4),
include/uapi/linux/fuse.h, protocol 7.31)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import PATIENCE

READ, RELEASE, FLUSH = 15, 18, 25
ENOENT, ENOSYS = 2, 38
SIZE = 4096

_ROOT, _FILE = 1, 2
_HEADER = struct.Struct("<IIQQIIII")
_UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET

_libc = ctypes.CDLL(None, use_errno=True)


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o666
    return struct.pack(
        "<QQQQQQIIIIIIIIII", node, SIZE, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
    )


class Server:
    """`silent`: operations that are never answered, but to this thread; `met` is set when one of
    them comes. A child of this process is another: fork none that closes a descriptor of the file.
    """

    def __init__(self, point: Path, silent: set[int]) -> None:
        self.file, self.silent, self.met = point / "f", silent, threading.Event()
        self.only = 0  # the process that is not answered; 0: all
        self._point, self._owner = point, threading.get_native_id()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"hostile", os.fsencode(point), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number), "mount of a FUSE file system")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _is_meant(self, thread: int) -> bool:
        return not self.only or Path(f"/proc/{self.only}/task/{thread}").exists()

    def end(self) -> None:
        """Whoever waits for an answer gets ECONNABORTED or ENOTCONN."""
        for flags in (1, 2):  # MNT_FORCE aborts the connection (fuse_umount_begin), then MNT_DETACH
            _libc.umount2(os.fsencode(self._point), flags)
        self._thread.join(PATIENCE)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._answer(os.read(self._fd, 1 << 17))

    def _answer(self, request: bytes) -> None:
        _, op, unique, node, _, _, asker, _ = _HEADER.unpack_from(request)
        if op in _UNANSWERED:
            return
        if op in self.silent and asker != self._owner and self._is_meant(asker):
            self.met.set()
            return
        body, error = self._body(op, node, request[_HEADER.size :])
        os.write(self._fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)

    def _body(self, op: int, node: int, arguments: bytes) -> tuple[bytes, int]:
        match op:
            case 26:  # INIT
                return struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 16, 8, 65536, 1, 16, 0, 0), 0
            case 1:  # LOOKUP
                if arguments.rstrip(b"\0") != b"f":
                    return b"", ENOENT
                return struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + _attributes(_FILE), 0
            case 3:  # GETATTR
                return struct.pack("<QII", 3600, 0, 0) + _attributes(node), 0
            case 14 | 27:  # OPEN, OPENDIR
                return struct.pack("<QII", 1, 0, 0), 0
            case 15:  # READ
                return b"\0" * SIZE, 0
            case 25 | 18:  # FLUSH, RELEASE
                return b"", 0
        return b"", ENOSYS


@contextmanager
def served(point: Path, *silent: int) -> Iterator[Server]:
    point.mkdir(exist_ok=True)
    server = Server(point, set(silent))
    try:
        yield server
    finally:
        server.end()
