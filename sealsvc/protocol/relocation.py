"""Messages of relocation. They need no native module."""

# Annotations are evaluated here, as in protocol.py.

from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import Keyed, Name, Request, SealId, Seconds


class Goal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the blocks of a file are to go: near the inode of directory `to` of the same file
    system, into fewer extents (`defrag`), or to device offsets that are congruent to the file
    offsets modulo `align` bytes (a power of two)."""

    to: Name | None = None
    defrag: bool = False
    align: Annotated[int, Meta(ge=4096, le=2**30)] | None = None


class Relocate(Keyed, frozen=True, tag="relocate"):
    """Move the blocks of the file `path` as `goal` says, for operators. Its seals are recalled with
    `quiesce`; a holder has `grace` seconds to answer with Quiesce or Return, or the relocation is
    called off. `replace`: a new file with the same contents and attributes takes the name, which is
    the only way for DAX files; seals are recalled without `quiesce` and end, nobody else may have
    the file open, and a new grant gets another descriptor. With `below`, the path lies below one of
    these directories. Answer: JobInfo."""

    path: Name
    goal: Goal
    grace: Seconds = 10.0
    replace: bool = False
    below: list[Name] | None = None


class Quiesce(Request, frozen=True, tag="quiesce"):
    """The holder's answer to a Recall with `quiesce`: it maps nothing of the range, and uses no
    address of it, until a Recall with state `granted` tells it to read the map again. The seal is
    kept. Raises still-mapped, as Return does. Answer: SealInfo."""

    seal: SealId
    seqid: Annotated[int, Meta(ge=0, lt=2**32)] | None = None


AnyRequest = Relocate | Quiesce
