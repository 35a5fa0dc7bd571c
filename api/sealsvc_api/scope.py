"""What a caller may see and touch. Whatever lies outside its scopes is answered as if it were not
there: word for word as the service answers for what is not."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Depends, Header

from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Conditions, List, SealInfo, SealPage, Show
from sealsvc_api.access import Action, Caller
from sealsvc_api.auth import demand
from sealsvc_api.connection import Connection, expect


def no_such_seal(seal: str) -> Refusal:
    return Refusal("no-such-seal", f"there is no seal {seal}", {"seal": seal})


def no_such_file(path: str) -> Refusal:
    return Refusal("no-such-file", f"{path} does not exist", {"path": path})


async def seal_in_scope(daemon: Connection, caller: Caller, seal: str) -> SealInfo:
    found = (await daemon.call(Show, seal=seal)).seal
    if not caller.sees(found.path):
        raise no_such_seal(seal)
    return found


async def refuse_unseen(daemon: Connection, caller: Caller, seal: str) -> None:
    """Raises as for a seal that is not, where the caller may not see it."""
    if caller.below is not None:
        await seal_in_scope(daemon, caller, seal)


async def changeable(daemon: Connection, caller: Caller, seal: str) -> None:
    """Raises unless the caller may change this seal."""
    if caller.below is None and caller.may(Action.SEALS_CHANGE):
        return
    found = await seal_in_scope(daemon, caller, seal)
    if found.owner != caller.name:
        demand(caller, Action.SEALS_CHANGE)


def path_in_scope(caller: Caller, path: str | None) -> None:
    if path is not None and not caller.sees(path):
        raise no_such_file(path)


async def listed(daemon: Connection, caller: Caller, asked: dict[str, Any]) -> SealPage:
    """A page of the live seals that the caller may see; `asked` are fields of List. It has as many
    as `limit` allows, of several messages of the control socket."""
    path_in_scope(caller, asked["path"])
    below = caller.confined if asked["path"] is not None else caller.directories
    seals: list[SealInfo] = []
    while True:
        page = expect(await daemon.call(List, **asked, below=below), SealPage)
        seals += page.seals
        wanted = asked["limit"] - len(page.seals)
        if page.next is None or wanted <= 0:
            return SealPage(seals=seals, next=page.next)
        asked = {**asked, "after": page.next, "limit": wanted}


def conditions(caller: Caller) -> Conditions:
    """What the service itself checks, where nothing can change in between."""
    uids = None if caller.holders is None else list(caller.holders)
    return Conditions(below=caller.directories, uids=uids)


async def _key(
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, include_in_schema=False)
    ] = None,
) -> str:
    return idempotency_key or ""


GivenKey = Annotated[str, Depends(_key)]


def asked_by(caller: Caller, key: str = "") -> dict[str, Any]:
    """The fields that tell the service for whom we ask. Each principal's keys are its own."""
    told: dict[str, Any] = {"principal": caller.name}
    if key:
        told["key"] = hashlib.sha256(f"{caller.name}\0{key}".encode()).hexdigest()[:48]
    return told
