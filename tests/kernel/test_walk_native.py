"""A walk through all processes is stopped by none: what the kernel does for one that holds its own
own mmap_lock, a library does here for one that is named to it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from held_files import PAGE, inode
from other_process import other

from tests.support.waiting import PATIENCE

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler"),
]

# Whoever reads the maps of process SLOW sleeps: in PROCMAP_QUERY, or with SLOW_TEXT in open(2) too.
SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int slow_fd = -1;
static void unanswered(void)
{
	(void)!write(2, "asked ", 6);
	sleep(600);
}
static int opened(const char *path, int flags, const char *function)
{
	char slow[64];
	int fd;
	snprintf(slow, sizeof(slow), "/proc/%s/maps", getenv("SLOW"));
	if (!strcmp(path, slow) && getenv("SLOW_TEXT"))
		unanswered();
	fd = ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, function))(path, flags, 0600);
	if (!strcmp(path, slow))
		slow_fd = fd;
	else if (fd == slow_fd)
		slow_fd = -1; /* it was closed: the number is another's */
	return fd;
}
int open(const char *path, int flags, ...) { return opened(path, flags, "open"); }
int open64(const char *path, int flags, ...) { return opened(path, flags, "open64"); }
int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *argument;
	va_start(ap, request);
	argument = va_arg(ap, void *);
	va_end(ap);
	if ((request & 0xffff) == 0x6611 && fd == slow_fd)
		unanswered();
	return ((int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl"))(fd, request, argument);
}
"""
ASK = """
import json, sys
from sealsvc.linux import native
from sealsvc.core.model import ByteRange
device, inode = map(int, sys.argv[1:])
for _ in range(2):
    found = native.mappings(0, device, inode, ByteRange(0, 8192))
    print(json.dumps([(m.pid, m.length, m.error) for m in found]))
    print("walked", file=sys.stderr, flush=True)
"""
MAP = """
fd = os.open(sys.argv[1], os.O_RDONLY)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mmap(None, 4096, 1, 1, fd, 0)
ready()
"""


def walks(path: Path, library: Path, **environment: str) -> tuple[list[list[list[int]]], list[int]]:
    """What two walks found, and how often each asked the slow process in vain."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, inode(path))],
        env={**os.environ, "LD_PRELOAD": str(library), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,  # far less than the slow one takes
    )
    asked = [said.count("asked") for said in done.stderr.split("walked")]
    return [json.loads(line) for line in done.stdout.splitlines()], asked[:2]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    made = tmp_path / "slow.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", made]
    subprocess.run(command, input=SLOW, text=True, check=True)
    return made


def test_a_process_that_does_not_answer_a_query_is_read_as_text(path: Path, library: Path) -> None:
    with other(MAP, path) as slow, other(MAP, path) as behind:
        both, asked = walks(path, library, SLOW=str(slow))
    for found in both:
        assert [slow, PAGE, 0] in found
        assert [behind, PAGE, 0] in found
    assert asked[0] > 0
    assert asked[1] == 0, "nobody asks it again while one waits for its answer"


def test_a_process_that_cannot_be_read_at_all_is_named(path: Path, library: Path) -> None:
    with other(MAP, path) as slow, other(MAP, path) as behind:
        both, asked = walks(path, library, SLOW=str(slow), SLOW_TEXT="1")
    for found in both:
        assert [slow, 0, errno.ETIMEDOUT] in found, "it may map the file"
        assert [behind, PAGE, 0] in found
    assert asked[0] > 0
    assert asked[1] == 0
