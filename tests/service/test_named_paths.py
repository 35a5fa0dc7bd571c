"""Every message of the control socket that names a file or a directory: whoever may not see a file
is answered as if it did not exist, by whichever name it is asked for."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from msgspec import inspect

from sealsvc.client import Client
from sealsvc.protocol import messages
from sealsvc.protocol.seals import Return
from tests.hostile.users import as_user, connected
from tests.support.maze import STRANGE, Maze, elsewhere, links
from tests.support.service import RISKS, serving

pytestmark = pytest.mark.kernel

NAMING = {"path", "source", "destination", "filesystem", "goal.to", "wanted.path"}
SCOPES = {"below", "only.below"}
# Strings that name none. One that is in no set is a new one: say which it is.
NAMES_NOTHING = {
    *("after", "alarm", "attachment", "claim", "job", "key", "kind", "name", "owner", "principal"),
    *("profile", "reason", "resume", "seal", "search", "secret", "strategies", "tag", "text"),
    *("trace", "wanted.part", "wanted.state"),
    *("action", "operation", "step"),  # of simulate, which names no file that there is
}
# What else a message needs to be understood; the others need nothing.
REST: dict[str, dict[str, Any]] = {
    "start-job": {"kind": "doctor"},
    "start-copy": {"source": "OWN", "destination": "OWN"},
    "relocate": {"path": "OWN", "goal": {"defrag": True}},
}


def _strings(of: inspect.Type, name: str = "") -> Iterator[str]:
    """Each field below this one that is a text of the client's choice."""
    match of:
        case inspect.StructType():
            for field in of.fields:
                yield from _strings(field.type, f"{name}.{field.name}".lstrip("."))
        case inspect.UnionType():
            for each in of.types:
                yield from _strings(each, name)
        case inspect.ListType() | inspect.SetType() | inspect.VarTupleType():
            yield from _strings(of.item_type, name)
        case inspect.StrType():
            yield name


def _requests() -> dict[str, set[str]]:
    """The texts of each message, by its tag."""
    found = {}
    for kind in get_args(messages.AnyRequest):
        described = inspect.type_info(kind)
        assert isinstance(described, inspect.StructType)
        found[str(described.tag)] = set(_strings(described))
    return found


REQUESTS = _requests()
NAMED = [
    (tag, field)
    for tag, fields in REQUESTS.items()
    for field in sorted(fields & NAMING)
    if tag != "simulate"
]


def test_it_is_known_of_each_string_whether_it_names_a_file() -> None:
    assert set.union(*REQUESTS.values()) == NAMING | SCOPES | NAMES_NOTHING
    assert len(NAMED) >= 16, NAMED


def _message(tag: str, field: str, path: str, own: Path, scope: Path | None) -> dict[str, Any]:
    made: dict[str, Any] = {"op": tag, "id": 1}
    for name, value in REST.get(tag, {}).items():
        made[name] = str(own) if value == "OWN" else value
    outer, _, inner = field.partition(".")
    made[outer] = {inner: path} if inner else path
    if scope is not None:
        if "below" in REQUESTS[tag]:
            made["below"] = [str(scope)]
        else:
            made["only"] = {"below": [str(scope)]}
    return made


def _answered(socket: str, asked: list[dict[str, Any]]) -> list[str]:
    """The answers, on one connection."""
    told = []
    with connected(socket) as sock:
        for message in asked:
            sock.send(json.dumps(message).encode())
            told.append(sock.recv(1 << 17).decode() or json.dumps({"ended": message}))
    return told


def _shown(answer: str, path: str) -> str:
    """But for the path that was asked for."""
    text = json.dumps(json.loads(answer), ensure_ascii=True, sort_keys=True)
    return text.replace(json.dumps(path)[1:-1], "PATH")


@pytest.fixture(scope="session")
def socket(root: Path) -> Iterator[str]:
    """Of a service that other users reach: pytest's own directories are root's."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with serving(Path(directory), [root], RISKS) as path:
            yield path


@pytest.fixture
def maze(root: Path, file: Path, client: Client) -> Iterator[Maze]:
    with links(root / "scope", file) as inside:
        reply = client.grant(path=str(file), kind="shared")
        os.close(reply.fds[0])
        yield Maze(inside, reply.seal.id, file)
        client.call(Return, seal=reply.seal.id)


def _compare(socket: str, maze: Maze, uid: int, *, scoped: bool) -> None:
    """Each message with each name: answered as with the name of nothing."""
    own, missing = maze.inside / "own", str(maze.missing[0])
    own.write_bytes(bytes(4096))
    scope = maze.inside if scoped else None
    named = [(tag, f) for tag, f in NAMED if not scoped or REQUESTS[tag] & SCOPES]
    with elsewhere(maze) as foreign:
        names = [str(path) for path in (*maze.forbidden, *maze.missing[1:], *foreign)]
        strange = [str(maze.inside / text) for text in STRANGE]
        for tag, field in named:
            asked = [_message(tag, field, path, own, scope) for path in (missing, *names, *strange)]
            plain, *others = as_user(lambda asked=asked: _answered(socket, asked), uid)
            for path, answer in zip((*names, *strange), others, strict=True):
                malformed = path in strange and json.loads(answer).get("code") == "bad-request"
                same = _shown(answer, path) == _shown(plain, missing)
                assert malformed or same, (tag, field, path, answer, plain)
    own.unlink()


def test_a_scope_sees_nothing_outside(socket: str, maze: Maze, client: Client) -> None:
    """Asked by an operator for a principal that is confined, as the REST API asks."""
    _compare(socket, maze, 0, scoped=True)
    assert client.show(maze.seal).state == "granted"


def test_a_user_who_is_no_operator_learns_nothing(socket: str, maze: Maze, client: Client) -> None:
    _compare(socket, maze, 65534, scoped=False)
    assert client.show(maze.seal).state == "granted"
