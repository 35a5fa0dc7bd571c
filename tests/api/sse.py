"""A reader of Server-Sent Events, as strict as a browser needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.api.conftest import Api


@dataclass
class Block:
    """What lies between two blank lines of an event stream."""

    id: str = ""
    event: str = ""
    retry: str = ""
    comments: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def blocks(answer: httpx.Response) -> Iterator[Block]:
    block = Block()
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if not line:
            yield block
            block = Block()
        elif name == "data":
            block.data = json.loads(value)
        elif name == "":
            block.comments.append(value)
        else:
            setattr(block, name, value)


class Stream:
    def __init__(self, answer: httpx.Response) -> None:
        self._blocks = blocks(answer)
        self.opening = next(self._blocks)

    def event(self) -> Block:
        return next(block for block in self._blocks if block.event)

    def comment(self) -> str:
        return next(block.comments[0] for block in self._blocks if block.comments)

    def ids(self, count: int) -> list[int]:
        return [int(self.event().id.rpartition(".")[2]) for _ in range(count)]


@contextmanager
def stream(api: Api, last: int | str | None = None, **query: int) -> Iterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with (
        api.client() as http,
        http.stream("GET", "/v1/events", headers=headers, params=query) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        # Named, because the answer is closed with the last reference to the reader.
        opened = Stream(answer)
        yield opened
