from __future__ import annotations

import os

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealsvc.cli.paths import absolute
from sealsvc.cli.units import (
    LARGEST,
    about_size,
    duration,
    exact_range,
    exact_size,
    parse_duration,
    parse_range,
    parse_size,
)
from sealsvc.core.model import ByteRange

sizes = st.integers(0, LARGEST) | st.builds(
    lambda n, shift: n << shift, st.integers(0, 4), st.integers(0, 60)
)


@given(sizes)
def test_exact_sizes_are_read_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@given(sizes, sizes.filter(bool))
def test_exact_ranges_are_read_back(offset: int, length: int) -> None:
    span = ByteRange(offset, length)
    assert parse_range(exact_range(span)) == span


@given(sizes)
def test_rounded_sizes_are_near(size: int) -> None:
    text = about_size(size)
    number, prefix = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "")
    scale = 1024 ** ("KMGTPE".index(prefix) + 1) if prefix else 1
    assert abs(float(number) * scale - size) <= 0.0501 * scale
    assert float(number) < 1024


@given(st.floats(0, 86400 * 365))
def test_durations_are_read_back_as_precisely_as_they_are_written(seconds: float) -> None:
    precision = (
        0.000501 if seconds < 1 else 0.051 if seconds < 60 else 60 if seconds < 86400 else 3600
    )
    assert abs(parse_duration(duration(seconds)) - seconds) <= precision + 0.5 * (seconds >= 59.95)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("0XfF", 255),
        ("12B", 12),
        ("64K", 65536),
        ("64k", 65536),
        ("1.5GiB", 3 << 29),
        (" 2M ", 2 << 20),
        ("4E", 2**62),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "1KB", "1.1", "0.3K", "4.1E", "8E", "1 K", "٣", "1e3"]
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole|above"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "1M", ":", "1M:", ":64K", "1M:0", "1:2:3", "1M-64K"])
def test_not_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|size"):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("10", 10),
        ("2.5", 2.5),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "5 m", "1y", "5m3", "nan", "inf", "1e3"])
def test_not_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0, "0s"),
        (1e-9, "1us"),
        (0.00025, "250us"),
        (0.0025, "2.5ms"),
        (0.25, "250ms"),
        (0.9996, "1s"),
        (12.5, "12.5s"),
        (59.96, "1m00s"),
        (307, "5m07s"),
        (3600, "1h00m"),
        (187200, "2d04h"),
    ],
)
def test_written_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_paths_are_made_absolute_without_following_links(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = os.path.realpath(tmp_path)
    os.mkdir(f"{base}/sub")
    os.symlink("/usr", f"{base}/link")
    monkeypatch.chdir(f"{base}/sub")
    assert absolute("f") == f"{base}/sub/f"
    assert absolute("../f") == f"{base}/f"
    assert absolute("./x//../f") == f"{base}/sub/f"
    assert absolute("/../a/./b") == "/a/b"
    assert absolute("../link/f") == f"{base}/link/f"
    # To the kernel this is /f, not base/f: it must reach the service as it is.
    assert absolute("../link/../f") == f"{base}/link/../f"
    with pytest.raises(click.BadParameter, match="UTF-8"):
        absolute(os.fsdecode(b"\xff"))
