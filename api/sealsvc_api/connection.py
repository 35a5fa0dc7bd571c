"""The one connection to the daemon, shared by all requests, that reconnects by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request

from sealsvc.client import AsyncClient, Reply
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import AnyRequest
from sealsvc_api.background import running

log = logging.getLogger("sealsvc.api")

Session = Callable[[AsyncClient], Awaitable[None]]
R = TypeVar("R")

PROMPT = 30.0  # seconds for answers that come from memory
PATIENT = 900.0  # seconds for those that wait for disks (prepare, audit) or holders (recall)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before connection attempt n: doubling, bounded, and jittered downwards so
    that several APIs do not return to a restarted daemon in step."""

    shortest: float
    longest: float

    def delay(self, attempt: int) -> float:
        # The exponent is bounded too: 2.0**1024 would overflow after a long night without daemon.
        full = min(self.longest, self.shortest * 2.0 ** min(attempt, 32))
        return full * random.uniform(0.5, 1.0)


class Connection:
    """`session` is run on every new client and returns when that client has lost the service."""

    def __init__(self, path: str, session: Session, backoff: Backoff) -> None:
        self.path = path
        self._session = session
        self._backoff = backoff
        self._client: AsyncClient | None = None

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.connected

    def down(self) -> Refusal:
        message = f"the API has no connection to the service on {self.path}"
        return Refusal("service-unavailable", message, {"socket": self.path}, retry_after=1.0)

    async def call(
        self, kind: type[AnyRequest], patience: float = PROMPT, /, **fields: Any
    ) -> Reply:
        """The daemon's answer; descriptors that came with it are closed, HTTP cannot carry them."""
        if self._client is None or not self._client.connected:
            raise self.down()
        try:
            # Bound here: among the keywords of AsyncClient.call, Grant's `kind` would be taken for
            # the parameter of that name.
            request = cast(type[AnyRequest], partial(kind, **fields))
            reply = await self._client.call(request, timeout=patience)
        except TimeoutError:
            raise self._late(patience) from None
        except Refusal as refusal:
            if refusal.code == "service-unavailable" and refusal.retry_after is None:
                refusal.retry_after = 1.0
            raise
        for fd in reply.fds:
            os.close(fd)
        return reply

    def _late(self, patience: float) -> Refusal:
        message = f"no answer within {patience:g} seconds; the request may still be carried out"
        return Refusal("service-unavailable", message, {"outcome": "unknown"}, retry_after=1.0)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Inside this context the connection is kept up."""
        async with running(self._keep(), "control connection"):
            yield

    async def _keep(self) -> None:
        attempt = 0
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._once()
            except Refusal as refusal:
                log.log(logging.DEBUG if attempt else logging.WARNING, "%s", refusal)
            except Exception:
                # The supervisor: a defect in one session must not end all later ones, for then
                # the API would answer 503 until somebody restarts it.
                log.exception("the session with the service failed")
            # A service that accepts and hangs up at once is backed off from as well.
            attempt = 0 if clock() - began > self._backoff.longest else attempt + 1
            await asyncio.sleep(self._backoff.delay(attempt))

    async def _once(self) -> None:
        client = AsyncClient(self.path)
        await client.connect()
        log.info("connected to %s", self.path)
        self._client = client
        try:
            await self._session(client)
        except TimeoutError:
            raise Refusal(
                "service-unavailable", f"{self.path} accepts but does not answer"
            ) from None
        finally:
            self._client = None
            await client.close()
        log.warning("the service on %s is gone; reconnecting", self.path)


def expect(reply: Reply, kind: type[R]) -> R:
    """The result, if it is of the kind that the protocol promises for the request."""
    if not isinstance(reply.result, kind):
        message = f"the service answered {type(reply.result).__name__}, not {kind.__name__}"
        raise Refusal("internal", message)
    return reply.result


async def _shared(request: Request) -> Connection:
    # async, or FastAPI would send it through a thread for each request
    connection = request.app.state.connection
    assert isinstance(connection, Connection)
    return connection


Daemon = Annotated[Connection, Depends(_shared)]
