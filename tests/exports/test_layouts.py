"""What is packed by hand against the headers: the kernel's, and our own of the page of counters."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sealsvc.exports import dm_ioctl, loop_device, stats
from sealsvc.exports.blocks import name_of
from sealsvc.exports.dm_ioctl import Target
from sealsvc.exports.protect import below
from tests.ring.test_ring_native import NATIVE, compiler
from tests.support.waiting import until

PROGRAM = """
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stddef.h>
#include <stdio.h>
#include "stats.h"
#define TELL(name, value) printf("%s %llu\\n", name, (unsigned long long)(value))
int main(void)
{
    struct dm_ioctl head = {.version = {4, 0, 0}, .data_size = 1, .data_start = 2,
        .target_count = 3, .open_count = 4, .flags = 5, .event_nr = 6, .dev = 7,
        .name = "n", .uuid = "u"};
    struct dm_target_spec spec = {1, 2, 3, 4, "linear"};
    TELL("head", sizeof(head));
    TELL("spec", sizeof(spec));
    TELL("create", DM_DEV_CREATE); TELL("remove", DM_DEV_REMOVE); TELL("suspend", DM_DEV_SUSPEND);
    TELL("status", DM_DEV_STATUS); TELL("load", DM_TABLE_LOAD); TELL("table", DM_TABLE_STATUS);
    TELL("flags", DM_READONLY_FLAG | DM_SUSPEND_FLAG << 1 | DM_STATUS_TABLE_FLAG << 2 |
         DM_BUFFER_FULL_FLAG << 3 | DM_SKIP_LOCKFS_FLAG << 4 | DM_NOFLUSH_FLAG << 5 |
         DM_DEFERRED_REMOVE << 6);
    TELL("loop-config", sizeof(struct loop_config));
    TELL("loop-info", sizeof(struct loop_info64));
    TELL("loop-rdevice", offsetof(struct loop_info64, lo_rdevice));
    TELL("loop-flags", offsetof(struct loop_info64, lo_flags));
    TELL("loop-ioctls", LOOP_CTL_GET_FREE ^ LOOP_CONFIGURE << 1 ^ LOOP_CLR_FD << 2 ^
         LOOP_GET_STATUS64 << 3);
    TELL("loop-direct", LO_FLAGS_DIRECT_IO << 8 | LO_FLAGS_READ_ONLY);
    TELL("block-size", BLKSSZGET);
    TELL("stats", sizeof(struct export_stats));
    TELL("stats-bytes", offsetof(struct export_stats, bytes));
    TELL("stats-pauses", offsetof(struct export_stats, pauses));
    TELL("stats-refusals", offsetof(struct export_stats, refusals));
    TELL("stats-state", offsetof(struct export_stats, state));
    fflush(stdout);
    fwrite(&head, sizeof(head), 1, stdout);
    fwrite(&spec, sizeof(spec), 1, stdout);
    return 0;
}
"""


def test_they_are_the_headers(tmp_path: Path) -> None:
    source, program = tmp_path / "layouts.c", tmp_path / "layouts"
    source.write_text(PROGRAM)
    core = NATIVE / "exports" / "core"
    subprocess.run(
        [compiler("gcc"), "-D_GNU_SOURCE", "-w", f"-I{core}", source, "-o", program], check=True
    )
    said = subprocess.run([program], capture_output=True, check=True).stdout
    packed = dm_ioctl._HEAD.pack(4, 0, 0, 1, 2, 3, 4, 5, 6, 0, 7, b"n", b"u")
    packed += dm_ioctl._SPEC.pack(1, 2, 3, 4, b"linear")
    assert said.endswith(packed)
    lines = said[: -len(packed)].decode().splitlines()
    told = {name: int(value) for name, value in (line.split() for line in lines)}

    head = dm_ioctl._HEAD.size
    code = 3 << 30 | head << 16 | 0xFD << 8
    commands = {
        "create": dm_ioctl._CREATE, "remove": dm_ioctl._REMOVE, "suspend": dm_ioctl._SUSPEND,
        "status": dm_ioctl._STATUS, "load": dm_ioctl._LOAD, "table": dm_ioctl._TABLE,
    }  # fmt: skip
    flags = (
        dm_ioctl._READ_ONLY, dm_ioctl._SUSPENDED, dm_ioctl._STATUS_TABLE, dm_ioctl._FULL,
        dm_ioctl._SKIP_LOCKFS, dm_ioctl._NO_FLUSH, dm_ioctl._DEFERRED,
    )  # fmt: skip
    loop = loop_device
    assert told == {
        "head": head,
        "spec": dm_ioctl._SPEC.size,
        **{name: code | number for name, number in commands.items()},
        "flags": sum(flag << n for n, flag in enumerate(flags)),
        "loop-config": loop._CONFIG.size,
        "loop-info": loop._INFO.size,
        "loop-rdevice": 16,
        "loop-flags": 52,
        "loop-ioctls": loop._CTL_GET_FREE
        ^ loop._CONFIGURE << 1
        ^ loop._CLR_FD << 2
        ^ loop._GET_STATUS << 3,
        "loop-direct": loop._DIRECT_IO << 8 | loop._READ_ONLY,
        "block-size": loop._BLKSSZGET,
        "stats": stats.SIZE,
        "stats-bytes": stats._HEAD.size,
        "stats-pauses": stats._PAUSES,
        "stats-refusals": stats._REFUSALS,
        "stats-state": 12,
    }


def test_a_table_is_what_was_joined() -> None:
    table = [Target(0, 8, "linear", "8:0 1000"), Target(8, 16, "error", "")]
    joined = dm_ioctl._joined(table)
    assert len(joined) % 8 == 0
    # What the kernel answers counts from the first target, what it is told from each.
    second = dm_ioctl._SPEC.unpack_from(joined)[3]
    assert dm_ioctl._split(joined, 1) == table[:1]
    assert dm_ioctl._split(joined[second:], 1) == table[1:]


def test_device_numbers_survive() -> None:

    for number in (os.makedev(8, 1), os.makedev(253, 300), os.makedev(259, 0xFFFFF)):
        assert dm_ioctl._small(dm_ioctl._huge(number)) == number


@pytest.mark.kernel
def test_a_loop_device_on_a_mounted_one_has_its_bytes_and_goes(xfs: Path) -> None:
    number = os.stat(xfs).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    node = f"/dev/{Path(f'/sys/dev/block/{device}').resolve().name}"
    loop = loop_device.attach_apart(node, read_only=False)
    try:
        with open(loop, "rb") as above, open(node, "rb") as beneath:
            assert above.read(4) == beneath.read(4) == b"XFSB"
        backing = Path(f"/sys/block/{Path(loop).name}/loop")
        assert (backing / "dio").read_text() == "1\n"
        loop_device.detach(loop, "8:99")  # somebody else's
        assert backing.exists()
    finally:
        loop_device.detach(loop, device)
    until(lambda: not backing.exists())
    loop_device.detach(loop, device)  # once more is no error


@pytest.mark.kernel
def test_what_lies_beneath_a_file_system_on_a_loop_device_is_found(xfs: Path) -> None:
    number = os.stat(xfs).st_dev
    image = (Path(f"/sys/dev/block/{name_of(number)}") / "loop" / "backing_file").read_text()
    assert {number, os.stat(image.rstrip("\n")).st_dev} <= below(number)
