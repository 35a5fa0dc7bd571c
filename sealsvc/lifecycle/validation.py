"""Mapping validation: proves that a holder has mapped its range as it says."""

from __future__ import annotations

import functools
import os
from concurrent.futures import Future

from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.states import Step
from sealsvc.lifecycle.grants import Grants, PassedDescriptor
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import filesystem, processes
from sealsvc.linux.host import Host, MappingFacts, MappingQuestion
from sealsvc.protocol.seals import Grant, MappingReport
from sealsvc.runtime.closing import close_later
from sealsvc.runtime.workers import Lost


async def refuse_unmappable(
    grants: Grants, request: Grant, passed: PassedDescriptor | None
) -> None:
    """Called before a grant. Raises Refusal `not-dax` when the request requires what only DAX
    mappings have (MAP_SYNC, PMD mappings) and the file is not DAX."""
    wanted = [name for name in ("map_sync", "pmd") if getattr(request.require, name)]
    file = request.path if passed is None else passed.fd
    if not wanted or file is None:
        return
    try:
        where = passed.place if passed else filesystem.place_at(request.path or "")
        if await grants.workers.of(where).run(grants.host.has_dax, file):
            return
    except Refusal:
        return  # the file cannot be opened: the grant itself will say why
    raise Refusal(
        "not-dax",
        f"require={','.join(wanted)}: {request.path or 'the file'} is not DAX (statx has no"
        " STATX_ATTR_DAX): its mappings go through the page cache",
        {"path": request.path, "require": wanted},
    )


async def validate(grants: Grants, seal: Seal, address: int | None) -> MappingReport:
    """Prove that the holder maps the seal's range, at `address` (None: wherever it is mapped). A
    GRANTED seal becomes ACTIVE; any other state is kept. Raises Refusal, and changes nothing, when
    the proof fails."""
    facts = await _facts(grants, seal, address)
    if not seal.live:
        raise Refusal("no-such-seal", f"seal {seal.id} has ended meanwhile", {"seal": seal.id})
    if states.allowed(seal.state, Step.VALIDATE):
        grants.machine.step(seal, Step.VALIDATE, "the mapping is proven")
    return MappingReport(
        seal=seal.id,
        seqid=seal.seqid,
        state=seal.state,
        vmas=facts.vmas,
        pages=facts.pages,
        present=facts.present,
        huge_pages=facts.huge_pages,
        pfn_checked=facts.pfn_checked,
        method=facts.method,
        dax=facts.dax,
        notes=facts.notes,
    )


async def _facts(grants: Grants, seal: Seal, address: int | None) -> MappingFacts:
    pid = seal.process.holder.pid
    if seal.process.pidfd < 0:
        raise _gone(pid)
    # The seal may end while a thread looks, which closes its own descriptors.
    pidfd = os.dup(seal.process.pidfd)
    anchor = os.dup(seal.hold.anchor) if seal.hold.anchor >= 0 else -1
    question = MappingQuestion(
        file=seal.file,
        range=seal.range,
        anchor=anchor,
        map=seal.map,
        pid=pid,
        address=address,
        require=seal.request.require,
    )
    call: Future[MappingFacts] = Future()
    # They are closed when the look has ended, which may be long after its caller has given up.
    copies = [pidfd] if anchor < 0 else [pidfd, anchor]
    call.add_done_callback(lambda _: close_later(seal.file.device, copies))
    look = functools.partial(_look, grants.host, question, pidfd)
    try:
        return await grants.looks.run(seal.process.holder.uid, pid, call, look)
    except Lost as lost:
        raise Refusal(
            "try-later",
            f"the mapping cannot be validated: {lost} (a page fault under way, or another that"
            " holds its mmap_lock)",
            {"pid": pid},
            retry_after=1.0,
        ) from None


def _look(host: Host, question: MappingQuestion, pidfd: int) -> MappingFacts:
    """Runs in a worker. A process keeps its pid until it has ended: that it had not ended after the
    look proves that every look by pid was at this process."""
    try:
        return host.validate(question)
    finally:
        if processes.has_ended(pidfd):
            raise _gone(question.pid)


def _gone(pid: int) -> Refusal:
    return Refusal("no-such-holder", f"process {pid}, the seal's holder, has ended", {"pid": pid})
