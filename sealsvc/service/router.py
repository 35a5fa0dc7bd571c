"""Routes requests to their handlers by type, answers repeated requests, and records requests in
the audit trail."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from sealsvc.control.connection import Connection, Reply
from sealsvc.core.errors import Refusal
from sealsvc.lifecycle.policy import Policy
from sealsvc.protocol.admin import Redeem
from sealsvc.protocol.base import Keyed
from sealsvc.protocol.messages import AnyRequest, Result
from sealsvc.protocol.rings import Attach
from sealsvc.protocol.seals import (
    Forgotten,
    Reclaim,
)
from sealsvc.registry import Registry
from sealsvc.runtime.users import Received
from sealsvc.service.idempotency import ReplyCache, digest_of

T = TypeVar("T")
Handler = Callable[[Connection, Any, Received], Awaitable[Reply]]
Answerer = Callable[[Connection, Any], Awaitable[Result]]
# By the type of the request. A handler receives descriptors, may send some, and handles idempotency
# keys itself. An answerer does neither.
Handlers = Mapping[type, Handler]
Answers = Mapping[type, Answerer]

# Requests that change something. They are recorded in the audit trail when an answerer answers
# them; handlers record what they do themselves (grants with more).
_RECORDED = (Keyed, Forgotten, Reclaim)
# Requests that are refused while the keeper does not answer.
_NEEDS_KEEPER = (Keyed, Attach, Redeem, Forgotten)
_UNRECORDED = {"id", "v", "key", "wait"}  # fields that are not recorded


class Router:
    """A table of handlers and a table of answerers. A request whose type is in both goes to its
    handler when descriptors came with it. `require_keeper` raises Refusal while the keeper does not
    answer, because the event loop would block on it."""

    def __init__(
        self,
        policy: Policy,
        replies: ReplyCache,
        registry: Registry,
        require_keeper: Callable[[], None],
    ) -> None:
        self._policy, self._replies, self._registry = policy, replies, registry
        self._require_keeper = require_keeper
        self._handlers: dict[type, Handler] = {}
        self._answers: dict[type, Answerer] = {}

    def add(self, answers: Answers, handlers: Handlers | None = None) -> None:
        """Add to the tables. Raises ValueError if a type already has an answerer or a handler
        there."""
        _join(self._answers, answers)
        _join(self._handlers, handlers or {})

    @property
    def served(self) -> set[type]:
        """The types of the requests that have a handler or an answerer."""
        return self._handlers.keys() | self._answers.keys()

    async def handle(self, connection: Connection, request: AnyRequest, fds: Received) -> Reply:
        """Answer a request. Raises Refusal, `unknown-operation` where nothing answers its type."""
        if isinstance(request, _NEEDS_KEEPER):
            self._require_keeper()
        kind = type(request)
        handler = self._handlers.get(kind)
        if handler is not None and (fds or kind not in self._answers):
            return await handler(connection, request, fds)
        if isinstance(request, Keyed) and request.key:
            act = functools.partial(self._recorded, connection, request)
            asker = self._policy.asker(connection.peer.uid, request.principal)
            result, _ = await self._replies.run(asker, request, digest_of(request), act)
            return Reply(result)
        return Reply(await self._recorded(connection, request))

    async def _recorded(self, connection: Connection, request: AnyRequest) -> Result:
        """Answer the request. If it changes something, record in the audit trail who asked for it,
        and the outcome."""
        if not isinstance(request, _RECORDED):
            return await self._answer(connection, request)
        outcome = "internal"
        try:
            result = await self._answer(connection, request)
            outcome = "done"
        except Refusal as refusal:
            outcome = refusal.code
            raise
        except asyncio.CancelledError:  # who asked has gone: what was begun goes on
            outcome = "not-awaited"
            raise
        finally:
            terms = msgspec.structs.asdict(request)
            seal = terms.pop("seal", None)
            said = {name: terms[name] for name in terms.keys() - _UNRECORDED if terms[name]}
            operation = type(request).__struct_config__.tag
            self._registry.asked(connection.peer, str(operation), seal, outcome=outcome, **said)
        return result

    async def _answer(self, connection: Connection, request: AnyRequest) -> Result:
        answerer = self._answers.get(type(request))
        if answerer is None:
            raise Refusal("unknown-operation", "the service does not serve this operation")
        return await answerer(connection, request)


def _join(table: dict[type, T], more: Mapping[type, T]) -> None:
    if twice := table.keys() & more.keys():
        raise ValueError(f"two handlers of {', '.join(kind.__name__ for kind in twice)}")
    table.update(more)
