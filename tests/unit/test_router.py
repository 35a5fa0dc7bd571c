"""Every request is answered by somebody, and by one alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sealsvc.control.connection import Connection
from sealsvc.lifecycle.policy import Policy
from sealsvc.protocol import integrity
from sealsvc.protocol.events import Watch
from sealsvc.protocol.messages import AnyRequest, Cancel, Done
from sealsvc.protocol.seals import Show
from sealsvc.protocol.system import Status
from sealsvc.registry import Registry
from sealsvc.runtime.config import Config, PolicySection, RegistrySection
from sealsvc.service.idempotency import ReplyCache
from sealsvc.service.router import Router
from sealsvc.service.systems import sim_daemon

# The connection itself answers these, and tags are served on real files alone.
ELSEWHERE = {Watch, Cancel}
TAGS = set(get_args(integrity.AnyRequest))


@pytest.fixture
def router() -> Router:
    registry = Registry(
        RegistrySection(enabled=False), lambda _: None, lambda _: None, lambda _: None
    )
    return Router(Policy(PolicySection()), ReplyCache(60.0), registry, lambda: None)


def test_each_request_has_who_answers_it(tmp_path: Path) -> None:
    config = Config()
    service = msgspec.structs.replace(config.service, socket=str(tmp_path / "control.sock"))
    daemon = sim_daemon(msgspec.structs.replace(config, service=service))
    served = daemon.router.served
    assert set(get_args(AnyRequest)) - served - ELSEWHERE <= TAGS
    assert not served & ELSEWHERE


async def _done(connection: Connection, request: Any) -> Done:
    return Done()


def test_a_second_answer_is_an_error(router: Router) -> None:
    router.add({Show: _done})
    with pytest.raises(ValueError, match="two handlers of Show"):
        router.add({Status: _done, Show: _done})
    assert router.served == {Show}
