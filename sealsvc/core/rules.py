"""The rule book: what each operation reaches, what it conflicts with, and which errno its caller
gets.

The rules are written here only. `python -m sealsvc.core.native_headers` generates
native/include/sealsvc/rules.h from them, which the gate, the rings and the BPF programs include;
Python (recalls, the simulator) uses the functions below. tests/unit/test_rules.py compares the two.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum, IntFlag


class Reach(IntEnum):
    """How much of a file's extent map an operation may change."""

    NONE = 0  # nothing of a sealed range: that is allocated, written, and not shared
    RANGE = 1  # the bytes it names
    TO_END = 2  # everything from its offset on
    WHOLE = 3  # any byte of the file


class Trait(IntFlag):
    """What decides a conflict besides the operation and the two ranges."""

    REFLINK = 1  # the file system shares blocks between files
    ATOMIC = 2  # it may write atomically (statx STATX_WRITE_ATOMIC reports a size)
    EXCLUSIVE = 4  # the guard is: nobody but its holder may open the file
    HOLDER = 8  # the caller is the guard's holder
    BACKED = 16  # bpf stands behind this guard, and judges truncation inside an open


@dataclass(frozen=True, slots=True)
class Rule:
    """`shared` is the reach on a file system with reflink. There an operation that shares blocks,
    or writes through the copy-on-write fork, reaches the whole file: XFS preallocates the extent
    size hint for CoW (xfs_bmap_extsize_align; 128 KiB, and the file's owner may raise it) around
    the block it copies, and a later store into any block below that preallocation moves it
    (fs/xfs/xfs_iomap.c, xfs_buffered_write_iomap_begin). `atomic` operations conflict only where
    Trait.ATOMIC is set. `opens` conflict with exclusive guards of others."""

    name: str
    reach: Reach
    shared: Reach
    why: str
    opens: bool = False
    atomic: bool = False
    backed: bool = False  # only an open where bpf stands behind the guard

    @property
    def changes_maps(self) -> bool:
        """Whether the operation may change an extent map, sealed or not, so that a grant must wait
        for its end."""
        return self.shared is not Reach.NONE


def _rule(name: str, reach: Reach, why: str, shared: Reach | None = None, **flags: bool) -> Rule:
    return Rule(name, reach, reach if shared is None else shared, why, **flags)


_NONE, _RANGE, _TO_END, _WHOLE = Reach.NONE, Reach.RANGE, Reach.TO_END, Reach.WHOLE

# In the order of `enum seal_op`.
RULES: dict[str, Rule] = {
    "READ": _rule("read", _NONE, "reads"),
    "MMAP": _rule("mmap", _NONE, "maps the file; stores through a mapping are in place"),
    "WRITE": _rule("write", _NONE, "in place inside a sealed range; may extend the file behind it"),
    "ALLOCATE": _rule("fallocate-allocate", _NONE, "fills holes; a sealed range has none"),
    "UNSHARE": _rule("fallocate-unshare-range", _NONE, "copies shared blocks", _WHOLE),
    "WRITE_ATOMIC": _rule("write-atomic", _RANGE, "RWF_ATOMIC: XFS may write out of place", _WHOLE),
    "WRITE_UNKNOWN": _rule(
        "write-unknown", _RANGE, "a write that may carry RWF_ATOMIC", _WHOLE, atomic=True
    ),
    "PUNCH": _rule("fallocate-punch-hole", _RANGE, "frees blocks"),
    "ZERO": _rule("fallocate-zero-range", _RANGE, "XFS replaces the blocks"),
    "WRITE_ZEROES": _rule("fallocate-write-zeroes", _RANGE, "replaces the blocks"),
    "REMOVE": _rule("madvise-remove", _RANGE, "MADV_REMOVE frees blocks"),
    "CLONE": _rule("clone", _RANGE, "shares blocks; source and destination alike", _WHOLE),
    "DEDUPE": _rule("dedupe", _RANGE, "shares blocks; both files alike", _WHOLE),
    "COPY": _rule("copy-file-range", _NONE, "a clone where the file system can", _WHOLE),
    "EXCHANGE": _rule(
        "exchange-range", _WHOLE, "exchanges extents; to the end of the file, sizes too"
    ),
    "TRUNCATE": _rule("truncate", _TO_END, "the offset is the new size"),
    "COLLAPSE": _rule("fallocate-collapse-range", _TO_END, "moves what lies behind it"),
    "INSERT": _rule("fallocate-insert-range", _TO_END, "moves what lies behind it"),
    "SWAP_BOOT": _rule("swap-boot", _WHOLE, "EXT4_IOC_SWAP_BOOT exchanges the whole map"),
    "HINT": _rule(
        "extent-size-hint", _NONE, "a hint for extent or CoW sizes decides where blocks go", _WHOLE
    ),
    "FLAGS": _rule("inode-flags", _WHOLE, "inode flags that change how the map is kept"),
    "REPAIR": _rule("online-repair", _WHOLE, "rebuilds the map"),
    "OPEN": _rule("open", _NONE, "opens the file", opens=True),
    "EXEC": _rule("execve", _NONE, "executes the file", opens=True),
    "OPEN_TRUNC": _rule("open-truncate", _WHOLE, "O_TRUNC", opens=True),
    "OPEN_HIDDEN": _rule(
        "open-hidden", _WHOLE, "an open that may truncate", opens=True, backed=True
    ),
    "HIDDEN": _rule("hidden", _TO_END, "what it does cannot be proven", _WHOLE),
}

_BY_NAME = {rule.name: rule for rule in RULES.values()}
NAMES = {rule.name: number for number, rule in enumerate(RULES.values())}


class Policy(IntEnum):
    """What a guard does with conflicts; of several that an operation meets, the greatest decides
    whether it waits."""

    ARMING = 0  # a grant is in progress: hold conflicts, tell nobody yet
    WAIT = 1  # hold conflicts and report them
    REFUSE = 2  # deny conflicts with ETXTBSY and report them
    BUSY = 3  # a recall's deadline has passed: deny conflicts with EBUSY
    WATCH = 4  # a registration: whoever is behind `watch` judges (sealsvc/rings.h)


# The errno that a conflict gets at once. The kernel accepts few in a fanotify response; these two
# are among them. Of two errnos the first in ERRNOS wins: ETXTBSY says that the seal refuses as
# long as it is held, and EBUSY that a recall is under way, after which the caller may try again.
# A caller that is told EBUSY although one of the seals refuses would try again in vain.
ERRNOS = (errno.ETXTBSY, errno.EBUSY)
POLICY_ERRNO = {Policy.REFUSE: errno.ETXTBSY, Policy.BUSY: errno.EBUSY}
# The errno of a holder's own conflict with its seal, which would otherwise wait for itself.
HOLDER_ERRNO = errno.EBUSY
# The errno from a mechanism that cannot hold callers (bpf), for conflicts that should wait.
NO_WAIT_ERRNO = errno.ETXTBSY


def of(name: str) -> Rule:
    """The rule of an operation by its name. An unknown one gets the rule HIDDEN."""
    return _BY_NAME.get(name, RULES["HIDDEN"])


def reach(rule: Rule, traits: Trait) -> Reach:
    """How much of the extent map the operation may change, with these traits."""
    if rule.backed and Trait.BACKED in traits:
        return Reach.NONE
    if rule.atomic and Trait.ATOMIC not in traits:
        return Reach.NONE
    return rule.shared if Trait.REFLINK in traits else rule.reach


def conflicts(rule: Rule, offset: int, length: int, start: int, end: int, traits: Trait) -> bool:
    """Whether an operation on `length` bytes at `offset` conflicts with a guard of the bytes
    [start, end). `length` 0 means to the end of the file; for a truncation, `offset` is the new
    size."""
    if rule.opens and Trait.EXCLUSIVE in traits and Trait.HOLDER not in traits:
        return True
    match reach(rule, traits):
        case Reach.NONE:
            return False
        case Reach.WHOLE:
            return start < end
        case Reach.TO_END:
            return offset < end
    to = offset + length
    if length == 0 or to >= 1 << 64:
        return offset < end
    return offset < end and start < to


def policy_errno(policy: Policy, *, by_holder: bool) -> int:
    """The errno that a conflict with a guard of this policy gets at once; 0 if it waits.
    `by_holder`: the guard's holder makes the operation."""
    if policy in POLICY_ERRNO:
        return POLICY_ERRNO[policy]
    return HOLDER_ERRNO if by_holder and policy is not Policy.ARMING else 0


def prevailing(one: int, other: int) -> int:
    """The errno of an operation that meets two guards, which give one errno each (0: none)."""
    return next((error for error in ERRNOS if error in (one, other)), 0)


def table() -> str:
    """The table of docs/rules.md, in Markdown."""
    lines = ["| operation | reaches | with reflink | why |", "| --- | --- | --- | --- |"]
    words = {
        Reach.NONE: "nothing sealed",
        Reach.RANGE: "its range",
        Reach.TO_END: "from its offset on",
        Reach.WHOLE: "the whole file",
    }
    for rule in RULES.values():
        note = "; conflicts with exclusive seals of others" if rule.opens else ""
        lines.append(
            f"| {rule.name} | {words[rule.reach]} | {words[rule.shared]} | {rule.why}{note} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
