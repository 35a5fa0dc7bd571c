"""Handlers of requests that read: one seal, lists, maps, audits, past events."""

from __future__ import annotations

import itertools
from operator import attrgetter
from typing import TypeVar

from sealsvc.control.connection import Connection
from sealsvc.core import extents
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.monitor.drift import audit, present_map
from sealsvc.protocol import codec
from sealsvc.protocol.base import MAX_MESSAGE
from sealsvc.protocol.events import PastEvents
from sealsvc.protocol.messages import Result
from sealsvc.protocol.seals import (
    Extent,
    ExtentPage,
    Extents,
    List,
    SealInfo,
    SealPage,
    Show,
)
from sealsvc.protocol.system import (
    Audit,
    AuditReport,
)
from sealsvc.service import listings
from sealsvc.service.foreign import ForeignNames
from sealsvc.service.history import Historian
from sealsvc.service.router import Answers
from sealsvc.service.visible import Visible

T = TypeVar("T")


class Looking:
    """Answers requests that change nothing, except that an audit may find drift."""

    def __init__(
        self,
        grants: Grants,
        recaller: Recaller,
        visible: Visible,
        historian: Historian,
        foreign: ForeignNames,
    ) -> None:
        self.grants, self.machine, self.table = grants, grants.machine, grants.machine.table
        self.recaller, self.visible, self.historian = recaller, visible, historian
        self.policy, self.registry = grants.policy, grants.registry
        self.foreign = foreign

    def answers(self) -> Answers:
        return {
            Show: self._show,
            List: self._list,
            Extents: self._extents,
            Audit: self._audit,
            PastEvents: self._past_events,
        }

    async def _audit(self, connection: Connection, request: Audit) -> AuditReport:
        peer = connection.peer
        chosen = (
            [self.visible.seal(peer, request.seal)] if request.seal else self.visible.seen(peer)
        )
        return _shortened(await audit(self.grants, self.recaller, chosen))

    async def _past_events(self, connection: Connection, request: PastEvents) -> Result:
        self.policy.operators_only(connection.peer, "watch events")
        return self.machine.events.page(request.since, request.limit, MAX_MESSAGE - 1024)

    async def _show(self, connection: Connection, request: Show) -> SealInfo:
        """A live seal, or one that has ended and is remembered."""
        peer = connection.peer
        found = self.machine.table.ended(request.seal)
        if found and (self.policy.is_operator(peer) or found.holder.uid == peer.uid):
            return found
        return self.visible.seal(peer, request.seal).info()

    async def _list(self, connection: Connection, request: List) -> SealPage:
        peer = connection.peer
        await self.foreign.refuse(connection.process, request, request.path)
        # A long list is read page by page: leave out what earlier pages had before filtering.
        after = request.after or ""
        chosen = [seal for seal in self.visible.seen(peer) if seal.id > after]
        if request.path is not None:
            chosen = await self.visible.of_path(peer, chosen, request.path, request.below)
        chosen = listings.chosen(chosen, request)
        chosen.sort(key=attrgetter("id"))
        page = _first_fitting(chosen[: request.limit], MAX_MESSAGE - 1024)
        more = len(chosen) > len(page)
        return SealPage(seals=page, next=page[-1].id if page and more else None)

    async def _extents(self, connection: Connection, request: Extents) -> ExtentPage:
        peer = connection.peer
        if self.registry.enabled and not request.now and self.table.get(request.seal) is None:
            found = await self.historian.map_at_grant(peer, request.principal, request.seal)
        else:
            seal = self.visible.seal(peer, request.seal)
            found = await present_map(self.grants, seal) if request.now else seal.map
        end = request.start + min(request.limit, 400)
        rows = found[request.start : end]
        return ExtentPage(
            extents=[
                Extent(
                    logical=int(logical),
                    physical=int(physical),
                    length=int(length),
                    flags=extents.flag_names(int(flags)),
                )
                for logical, physical, length, flags in rows
            ],
            total=len(found),
            next=end if end < len(found) else None,
        )


def _shortened(report: AuditReport) -> AuditReport:
    """The report, cut so that it fits into a message: a quarter of it for drifted seals, a quarter
    for unreadable ones."""
    drifted = _fitting(report.drifted, MAX_MESSAGE // 4)
    unreadable = _fitting(report.unreadable, MAX_MESSAGE // 4)
    found = len(report.drifted) + len(report.unreadable)
    return AuditReport(
        checked=report.checked,
        drifted=drifted,
        unreadable=unreadable,
        more=found - len(drifted) - len(unreadable),
    )


def _fitting(items: list[T], room: int) -> list[T]:
    sizes = itertools.accumulate(len(codec.encoded(item)) + 1 for item in items)
    return [item for item, size in zip(items, sizes, strict=True) if size <= room]


def _first_fitting(seals: list[Seal], room: int) -> list[SealInfo]:
    """The first seals, as many as fit into `room` bytes when they are encoded."""
    page: list[SealInfo] = []
    for seal in seals:
        info = seal.info()
        room -= len(codec.encoded(info)) + 1
        if room < 0:
            break
        page.append(info)
    return page
