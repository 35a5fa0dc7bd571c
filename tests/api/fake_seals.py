"""The seals of the fake daemon: granted, returned and listed with no file behind them."""

from __future__ import annotations

import msgspec

from sealsvc.core.errors import TABLE, Refusal
from sealsvc.core.model import State
from sealsvc.protocol import seals
from sealsvc_api import examples


class Seals:
    def __init__(self) -> None:
        self.held: dict[str, seals.SealInfo] = {}

    def find(self, seal: str) -> seals.SealInfo:
        if seal not in self.held:
            raise Refusal("no-such-seal", f"there is no seal {seal}", {"seal": seal})
        return self.held[seal]

    def grant(self, request: seals.Grant) -> seals.SealInfo:
        if request.path and request.path.startswith("/refuse/"):
            code = request.path.removeprefix("/refuse/")
            later = 1.5 if TABLE[code].retryable else None
            raise Refusal(code, f"refused with {code}", {"path": request.path}, later)
        seal = f"{len(self.held) + 1:024x}"
        made = {"id": seal, "path": request.path or "", "seqid": 1, "tag": request.tag}
        made["owner"] = request.principal
        self.held[seal] = msgspec.structs.replace(examples.SEAL, **made)
        return self.held[seal]

    def at(self, seal_id: str, seqid: int | None) -> seals.SealInfo:
        seal = self.find(seal_id)
        if seqid not in (None, seal.seqid):
            raise Refusal("stale-seqid", f"it is {seal.seqid}", {"seqid": seal.seqid})
        return seal

    def give_back(self, request: seals.Return) -> seals.SealInfo:
        seal = self.at(request.seal, request.seqid)
        del self.held[request.seal]
        return msgspec.structs.replace(seal, seqid=seal.seqid + 1, state=State.RETURNED)

    def page(self, request: seals.List) -> seals.SealPage:
        after = request.after or ""
        found = [
            seal
            for seal in sorted(self.held.values(), key=lambda seal: seal.id)
            if seal.id > after
            and request.path in (None, seal.path)
            and request.state in (None, seal.state)
            and request.pid in (None, seal.holder.pid)
            and (request.below is None or any(seal.path.startswith(d) for d in request.below))
        ]
        page = found[: request.limit]
        return seals.SealPage(seals=page, next=page[-1].id if len(found) > len(page) else None)
