"""The catalogue does what it says, on real unsealed files."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from sealsvc.doctor.actor import Subject
from sealsvc.doctor.bench import Bench
from sealsvc.doctor.operations import CATALOGUE
from sealsvc.doctor.unsealed import run_unsealed

_NOT = {errno.EOPNOTSUPP}
_NO_IOCTL = {errno.ENOTTY}
_ATOMIC = dict.fromkeys(
    (
        "pwritev2-atomic",
        "aio-write-atomic",
        "io_uring-write-atomic",
        "io_uring-worker-write-atomic",
    ),
    _NOT,
)
_CLONES = (
    "ficlone-source",
    "ficlone-destination",
    "ficlonerange-source",
    "ficlonerange-destination",
    "fideduperange-source",
    "fideduperange-destination",
    "cp-reflink-source",
    "cp-reflink-over",
)
# What the file systems of Linux 6.18 do not do on a loop device without atomic writes or write
# zeroes of its own, by the operation's name without its route. None stands for a tool's words.
UNSUPPORTED: dict[str, dict[str, set[int | None]]] = {
    "xfs": {"fallocate-write-zeroes": _NOT},
    "ext4": {
        "fallocate-write-zeroes": _NOT,
        "fallocate-unshare-range": _NOT,
        "shrink": {None},
        **_ATOMIC,
        **dict.fromkeys(_CLONES, _NOT),
    },
    "btrfs": {
        "fallocate-write-zeroes": _NOT,
        "fallocate-unshare-range": _NOT,
        "fallocate-collapse-range": _NOT,
        "fallocate-insert-range": _NOT,
        "cp-reflink-source": {errno.EINVAL},  # a new file is not NOCOW, the source is
        **_ATOMIC,
    },
}
# What depends on how the kernel was built or set up, not on the file system.
ELSEWHERE: dict[str, set[int | None]] = {
    "core-dump": _NOT,
    "xfs-scrub-repair": _NO_IOCTL | _NOT,  # no online scrub; no repair, or no reverse map
}
CAP_SYS_RESOURCE = 24


def has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(re.search(r"CapEff:\s*(\w+)", status)[1], 16) >> number & 1)  # type: ignore[index]


@pytest.mark.parametrize("name", [n for n, op in CATALOGUE.items() if op.twin])
def test_an_operation_on_an_unsealed_file(name: str, bench: Bench, subject: Subject) -> None:
    operation = CATALOGUE[name]
    if name == "grow" and bench.filesystem == "ext4" and not has_capability(CAP_SYS_RESOURCE):
        pytest.skip("ext4 grows only for CAP_SYS_RESOURCE")
    if not operation.applies_to(bench.filesystem):
        pytest.skip(f"not an operation of {bench.filesystem}")
    twin = run_unsealed(bench, subject, operation)
    unsupported = UNSUPPORTED[bench.filesystem].get(name.split("/")[0], set())
    assert twin.ended
    if twin.failed:
        assert twin.errno in unsupported | ELSEWHERE.get(name.split("/")[0], set()), twin.detail
    else:
        assert not unsupported, "it is supported after all"
    expected = operation.changes_map(bench.filesystem)
    assert twin.changed == (expected and (not twin.failed or name == "cp-reflink-over"))
