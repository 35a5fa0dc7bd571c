"""Sizes, byte ranges and durations as people write and read them. Free of I/O.

Sizes are binary: K is 1024. What `exact_size` and `exact_range` print, the parsers read back to
the same number; `about_size` and `duration` are for reading only and round.
"""

from __future__ import annotations

import re
import time
from fractions import Fraction

from sealsvc.core.model import ByteRange

LARGEST = 2**62  # the protocol's bound on offsets and lengths

_PREFIXES = "KMGTPE"
_SIZE = re.compile(r"(0x[0-9a-f]+|\d+(?:\.\d+)?)(?:([KMGTPE])(?:iB)?|B)?", re.IGNORECASE | re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)", re.ASCII)
_MILLISECONDS: dict[str, Fraction | int] = {
    "us": Fraction(1, 1000),
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
_PLAIN = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of "4096", "0x1000", "64K", "1.5GiB". ValueError says what is wrong."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size (such as 4096, 64K or 1.5GiB)")
    digits, prefix = match.groups()
    number = Fraction(int(digits, 16)) if digits[:2].lower() == "0x" else Fraction(digits)
    size = number * 1024 ** (_PREFIXES.index(prefix.upper()) + 1 if prefix else 0)
    if size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size > LARGEST:
        raise ValueError(f"{text!r} is above the largest offset, {exact_size(LARGEST)}")
    return int(size)


def exact_size(size: int) -> str:
    """With the largest prefix that divides it: 65536 is "64K", 1536 stays "1536"."""
    prefix = ""
    for larger in _PREFIXES:
        if size == 0 or size % 1024:
            break
        size, prefix = size // 1024, larger
    return f"{size}{prefix}"


def about_size(size: int) -> str:
    """Rounded to one decimal: 1536 is "1.5K"."""
    value, prefix = float(size), ""
    for larger in _PREFIXES:
        # 1023.96K would round to "1024K".
        if round(value, 1) < 1024:
            break
        value, prefix = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + prefix


def parse_range(text: str) -> ByteRange:
    """ "1M:64K" is 64 KiB from offset 1 MiB."""
    offset, colon, length = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not a range (OFFSET:LENGTH, such as 1M:64K)")
    parsed = ByteRange(parse_size(offset), parse_size(length))
    if parsed.length == 0:
        raise ValueError(f"{text!r} is an empty range")
    return parsed


def exact_range(span: ByteRange) -> str:
    return f"{exact_size(span.offset)}:{exact_size(span.length)}"


def parse_duration(text: str) -> float:
    """Seconds of "10", "2.5", "250us", "500ms", "5m", "1h30m", "2d"."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration (such as 10, 500ms, 5m or 1h30m)")
    return float(sum(Fraction(number) * _MILLISECONDS[unit] for number, unit in parts) / 1000)


def moment(epoch: float) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def duration(seconds: float) -> str:
    """The two largest units: "250us", "2.5ms", "250ms", "12.5s", "5m07s", "3h05m", "2d04h"."""
    seconds = max(0.0, seconds)
    if 0 < seconds < 0.0009995:
        return f"{max(1, round(seconds * 1e6))}us"
    if 0 < seconds < 0.00995:
        return f"{seconds * 1000:.1f}".removesuffix(".0") + "ms"
    if seconds < 0.9995:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
