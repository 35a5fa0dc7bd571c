"""Asking the service, with the type of the answer checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import AnyRequest

T = TypeVar("T")


def ask(
    client: Client,
    request: type[AnyRequest],
    answer: type[T],
    fds: Sequence[int] = (),
    **fields: Any,
) -> T:
    result = client.call(request, fds, **fields).result
    if not isinstance(result, answer):
        raise Refusal("internal", f"the service answered with {type(result).__name__}")
    return result
