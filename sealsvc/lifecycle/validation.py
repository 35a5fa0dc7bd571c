"""Mapping validation: a holder's word that it has mapped its range, made into a proof."""

from __future__ import annotations

import functools
import os
from concurrent.futures import Future

from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.states import Step
from sealsvc.lifecycle.grants import Grants, Passed
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import filesystem, processes
from sealsvc.linux.host import Host, MappingFacts, MappingQuestion
from sealsvc.protocol.seals import Grant, MappingReport
from sealsvc.runtime.closing import close_later
from sealsvc.runtime.workers import Lost


async def refuse_unmappable(grants: Grants, request: Grant, passed: Passed | None) -> None:
    """Before a grant: what only DAX can give is not to be had of a file without."""
    wanted = [name for name in ("map_sync", "pmd") if getattr(request.require, name)]
    file = request.path if passed is None else passed.fd
    if not wanted or file is None:
        return
    try:
        where = passed.place if passed else filesystem.place_at(request.path or "")
        if await grants.workers.of(where).run(grants.host.has_dax, file):
            return
    except Refusal:
        return  # the file cannot be opened, and the grant itself tells why
    raise Refusal(
        "not-dax",
        f"require={','.join(wanted)}: {request.path or 'the file'} is not DAX (statx has no"
        " STATX_ATTR_DAX): its mappings go through the page cache",
        {"path": request.path, "require": wanted},
    )


async def validate(grants: Grants, seal: Seal, address: int | None) -> MappingReport:
    """Prove the mapping of the seal's range in its holder. A granted seal becomes active; in any
    other state it stays as it is, as it does when the proof fails."""
    facts = await _facts(grants, seal, address)
    if not seal.live:
        raise Refusal("no-such-seal", f"seal {seal.id} has ended meanwhile", {"seal": seal.id})
    if states.allowed(seal.state, Step.VALIDATE):
        grants.life.step(seal, Step.VALIDATE, "the mapping is proven")
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
    # The seal may end while a thread looks, and its descriptors with it.
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
    # Copies: they go when the look has ended, which may be long after nobody waits for it.
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
    """In a worker. As long as the process has not ended its pid is its own: asked afterwards, that
    holds for all that was looked at by pid."""
    try:
        return host.validate(question)
    finally:
        if processes.has_ended(pidfd):
            raise _gone(question.pid)


def _gone(pid: int) -> Refusal:
    return Refusal("no-such-holder", f"process {pid}, the seal's holder, has ended", {"pid": pid})
