"""A process whose mmap_lock nobody gets: a page fault without an answer, and a writer behind it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import PATIENCE, until

# A FUSE server that never answers a read: argv[1] is where it mounts. The child maps its file, with
# argv[2] mapped beside it, and touches the page. Two reads fail, and the fault is tried again: then
# it sleeps with the mmap_lock held, for reading (mm/filemap.c). Another thread waits for it to
# write, and whoever comes to read waits behind that one.
_SCRIPT = r"""
import ctypes, os, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
point, beside = sys.argv[1:]
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
assert libc.mount(b"stuck", point.encode(), b"fuse.stuck", 6, options.encode()) == 0
def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100644, 4096)
    return struct.pack("<6Q10I", node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def serve():
    reads = 0
    while True:
        request = os.read(fuse, 1 << 17)
        opcode, unique, node = struct.unpack_from("<IQQ", request, 4)
        answer, error = b"", 0
        if opcode == 26:  # INIT
            answer = struct.pack("<4I2H2I2H8I", 7, 26, 4096, 0, 1, 1, 4096, 1, 0, 0, *[0] * 8)[:64]
        elif opcode == 1:  # LOOKUP
            answer = struct.pack("<4Q2I", 2, 0, 60, 60, 0, 0) + attributes(2)
        elif opcode == 3:  # GETATTR
            answer = struct.pack("<Q2I", 60, 0, 0) + attributes(node)
        elif opcode == 14:  # OPEN
            answer = struct.pack("<Q2I", 1, 0, 0)
        elif opcode == 15:  # READ
            reads += 1
            if reads > 2:
                print("stuck", flush=True)
                continue
            error = -5
        elif opcode in (2, 42):  # FORGET
            continue
        elif opcode not in (18, 25):
            error = -38
        os.write(fuse, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
def serve_until_unmounted():
    try:
        serve()
    except OSError:
        pass
threading.Thread(target=serve_until_unmounted, daemon=True).start()
child = os.fork()
if child == 0:
    os.close(fuse)
    if beside:
        libc.mmap(None, 4096, 1, 1, os.open(beside, os.O_RDONLY), 0)
    page = libc.mmap(None, 4096, 1, 1, os.open(point + "/file", os.O_RDONLY), 0)
    threading.Thread(target=lambda: libc.memchr(page, 0, 1), daemon=True).start()
    time.sleep(0.5)
    threading.Thread(target=lambda: libc.mmap(None, 4096, 3, 0x22, -1, 0), daemon=True).start()
    time.sleep(0.2)
    libc.pause()
print(child, flush=True)
sys.stdin.read()
os.kill(child, 9)
os.close(fuse)
libc.umount2(point.encode(), 2)
"""


def _waits_to_map(pid: int) -> bool:
    """Whether a thread sleeps in mmap(2) or in what maps a stack for a new one."""
    tasks = Path(f"/proc/{pid}/task").glob("*/wchan")
    return any("mmap" in task.read_text() for task in tasks)


@contextmanager
def stuck(beside: Path | str = "") -> Iterator[int]:
    """The pid of such a process; it maps the first page of `beside`."""
    with tempfile.TemporaryDirectory() as point:
        server = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, point, str(beside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin
        assert server.stdout
        try:
            said = {server.stdout.readline().strip(), server.stdout.readline().strip()}
            pid = int((said - {"stuck"}).pop())
            assert "stuck" in said
            until(lambda: _waits_to_map(pid), what="the writer")
            yield pid
        finally:
            server.communicate("", timeout=PATIENCE)
