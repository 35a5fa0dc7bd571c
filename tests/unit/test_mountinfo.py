"""Mount tables: text that holds anything but NUL, and lines that are not as they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealsvc.linux import mountinfo
from sealsvc.linux.mountinfo import MountTable, mount_at, parsed, unescaped

LINE = b"91 43 0:39 / /mnt/x rw,relatime shared:5 - overlay ov rw,lowerdir=/l,upperdir=up,workdir=w"


def test_a_line() -> None:
    mount = parsed(LINE)
    assert mount is not None
    assert (mount.id, mount.device, mount.root, mount.point) == (
        91, os.makedev(0, 39), "/", "/mnt/x",
    )  # fmt: skip
    assert (mount.type, mount.source) == ("overlay", "ov")
    assert mount.option("upperdir") == "up"
    assert mount.option("rw") is None


@pytest.mark.parametrize(
    ("name", "means"),
    [
        (rb"/m\040n\134", b"/m n\\"),
        (b"/m\xff\xfex", b"/m\xff\xfex"),
        (b"/m\x0cn\x0bo\x1cp", b"/m\x0cn\x0bo\x1cp"),
        ("/m\u2028n\x85".encode(), "/m\u2028n\x85".encode()),
        (rb"/m\012n", b"/m\nn"),
    ],
)
def test_names_may_hold_anything(name: bytes, means: bytes) -> None:
    mount = parsed(LINE.replace(b"/mnt/x", name))
    assert mount is not None
    assert os.fsencode(mount.point) == means == unescaped(name)


@pytest.mark.parametrize(
    "line",
    [b"", b"91", LINE.replace(b" - ", b" "), LINE.replace(b"0:39", b"x"), LINE[:-40], b"\xff" * 9],
)
def test_a_line_that_cannot_be_parsed_is_none(line: bytes) -> None:
    assert parsed(line) is None or line == LINE[:-40]


def test_one_bad_line_takes_no_other_with_it(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    other = LINE.replace(b"91 ", b"92 ").replace(b"/mnt/x", b"/mnt/\xffy")
    file.write_bytes(b"\n".join((LINE, b"no line at all", other)) + b"\n")
    table = MountTable(os.open(file, os.O_RDONLY))
    try:
        assert [mount.id for mount in table.read()] == [91, 92]
        assert table.skipped == 1
    finally:
        table.close()


def test_which_mount_a_path_leads_to() -> None:
    lines = [LINE.replace(b"91", b"1").replace(b"/mnt/x", b"/"), LINE]
    table = [mount for line in lines if (mount := parsed(line)) is not None]
    found = [mount_at(path, table) for path in ("/mnt/x/f", "/mnt/xy", "/mnt/x", "/mnt/x/../f")]
    assert [mount.id for mount in found if mount] == [91, 1, 91, 1]


def test_the_own_table_has_the_root() -> None:
    assert any(mount.point == "/" for mount in mountinfo.own().read())
