"""Messages of copies. They need no native module."""

# Annotations are evaluated here, as in protocol.py.

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import Keyed, Length, Name, Offset, Request

STRATEGIES = ("clone", "lower", "nvme", "xcopy", "dax", "range", "direct", "plain")
Strategies = list[Annotated[str, Meta(pattern="^(clone|lower|nvme|xcopy|dax|range|direct|plain)$")]]


class StartCopy(Keyed, frozen=True, tag="start-copy"):
    """Copy bytes between two files (docs/copies.md), which are two descriptors sent with the
    request (source, destination; one alone: within that file), or, for operators, named by paths.
    An offload takes exclusive seals: for one, close the descriptors once the job has begun.
    Offsets and lengths in bytes: `length` from `offset` on (null: to the source's end) go to offset
    `to` (null: the same); `whole` makes the destination as long as the source.

    `throttle` in bytes per second. `in_place`: the destination's extent map stays. `recall`: seals
    on both files are recalled first. `seals` false: none are taken, and so no offload.
    `strategies`: these alone, with `plain` as the last resort. `resume`: the token of an earlier
    result. `dry_run`: the job's result is the plan. With `below`, paths lie below one of these
    directories. Answer: JobInfo; its result, once it has ended, is that of the copy."""

    source: Name | None = None
    destination: Name | None = None
    below: list[Name] | None = None
    offset: Offset = 0
    length: Length | None = None
    to: Offset | None = None
    whole: bool = False
    throttle: Annotated[int, Meta(ge=4096, le=2**50)] | None = None
    durable: bool = True
    verify: bool = False
    in_place: bool = False
    recall: bool = False
    seals: bool = True
    strategies: Strategies = msgspec.field(default_factory=list)
    resume: Annotated[str, Meta(max_length=16384)] = ""
    dry_run: bool = False


class CopyTrust(Request, frozen=True, tag="copy-trust"):
    """What was measured of strategies, and found in self-tests of offloads. Answer:
    CopyTrustReport."""


class CopyTrustRow(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy on a pair of file systems. `rate` in bytes per second (null: not measured);
    `self_test` is verified, lied, or empty (it is no offload, or was not used); times are seconds
    of the Unix epoch."""

    pair: str
    strategy: str
    rate: float | None = None
    self_test: str = ""
    at: float = 0.0
    note: str = ""


class CopyTrustReport(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="copy-trust"
):
    """A row for each strategy and pair of devices."""

    rows: list[CopyTrustRow]


AnyRequest = StartCopy | CopyTrust


def spec_of(request: StartCopy) -> dict[str, Any]:
    """What the worker is told."""
    said = msgspec.structs.asdict(request)
    envelope = ("id", "v", "key", "principal", "trace", "source", "destination", "below")
    only = said.pop("strategies")
    return {name: said[name] for name in said.keys() - set(envelope)} | {"only": only}
