"""Messages about the service itself, its file systems, its enforcers, and audits of maps."""

from __future__ import annotations

from typing import Any

import msgspec

from sealsvc.core.model import (
    Drift,
    Gap,
)
from sealsvc.protocol.base import (
    Name,
    Request,
    SealId,
    Seconds,
)


class Audit(Request, frozen=True, tag="audit"):
    """Compare the present extent map of every live seal (or of one) with the recorded one; a
    drifted seal becomes `lost`. Answer: AuditReport."""

    seal: SealId | None = None


class Filesystems(Request, frozen=True, tag="filesystems"):
    """The file systems under the allowed roots. With `below`, seals are counted that lie below
    these directories. Answer: FilesystemList."""

    below: list[Name] | None = None


class Status(Request, frozen=True, tag="status"):
    """With `below`, the status holds what concerns files below these directories and nothing that
    tells of others: no counters, no connections, no reports on the registry. Answer:
    ServiceStatus."""

    below: list[Name] | None = None


class Simulate(Request, frozen=True, tag="simulate"):
    """Only under `serve --sim`: make something happen in the simulated system (sealsvc/sim).
    `action` is one of create (path, size), conflict (path, operation, offset, length, pid; answered
    when it ends), fail (step, errno, times), drift (path), map and unmap (path, pid), clock
    (seconds: so much time passes). Sizes, offsets and lengths are in bytes. Answer: Simulated."""

    action: str
    path: Name | None = None
    size: int = 0
    operation: str = "fallocate-punch-hole"
    offset: int = 0
    length: int = 0
    pid: int = 0
    step: str = ""
    errno: int = 0
    times: int = 1
    seconds: Seconds = 0.0


class AuditReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="audit-report"):
    """`more` were found, drifted or unreadable, beside those that a message has room for."""

    checked: int
    drifted: list[Drift]
    unreadable: list[str]
    more: int = 0


class PmemRegion(msgspec.Struct, frozen=True, kw_only=True):
    """Where a device lies in physical memory, in bytes."""

    start: int
    length: int


class FilesystemInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`block_size` is in bytes. `dax` says whether it is mounted so that its files have DAX; `pmem`
    is null where the device is not persistent memory, or does not lie there in one piece."""

    mount: str
    type: str
    device: str
    block_size: int
    reflink: bool
    dax: bool
    enforcers: list[str]
    supported: bool
    reason: str
    gaps: list[Gap]
    seals: int
    pmem: PmemRegion | None = None


class FilesystemList(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="filesystems"
):
    """The file systems below the service's roots."""

    filesystems: list[FilesystemInfo]


class EnforcerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` says why the enforcer is not available; `limits` are the parts that it lacks here,
    each with its reason (enforce/base.py)."""

    name: str
    available: bool
    reason: str
    limits: list[str] = []


class RegistryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`lag` events wait to be written, `lost` never will be; `troubles` says why it cannot be
    written right now. Its process was started again `restarts` times."""

    enabled: bool = False
    lag: int = 0
    lost: int = 0
    troubles: list[str] = []
    restarts: int = 0


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="status"):
    """The service as it is now. `uptime` is in seconds; `seals` counts live seals by state; `run`
    as in Watching."""

    version: str
    protocol: int
    pid: int
    uptime: float
    simulated: bool
    kernel: str
    roots: list[str]
    enforcers: list[EnforcerInfo]
    seals: dict[str, int]
    conflicts_waiting: int
    connections: int
    counters: dict[str, int]
    registry: RegistryInfo = RegistryInfo()
    run: str = ""


class Simulated(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="simulated"):
    """What came of the action."""

    result: dict[str, Any]
