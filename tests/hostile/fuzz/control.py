"""Inputs for the control socket: each a request with some fields drawn at random."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
from msgspec import inspect

from sealsvc.core.errors import TABLE
from sealsvc.protocol.messages import Answer, Failure
from sealsvc.protocol.seals import List, Return
from tests.hostile.fuzz.drawn import Draw
from tests.hostile.fuzz.tally import Tally
from tests.hostile.requests import kinds, ordinary
from tests.hostile.users import answer, connected

# Simulate is for tests, and is no request on a real system. A recall may be waited for.
_SKIPPED = {"simulate"}
_WAITS = {("recall", "wait")}
_A_CONNECTION = 2000  # inputs
_TIDY = 250  # inputs between two returns of all seals
_RAW = 0.03  # of the inputs are damaged JSON

_REPLIES = msgspec.json.Decoder(Answer | Failure)


class Control:
    def __init__(self, path: str, seed: str, paths: list[str], tally: Tally) -> None:
        self._path, self._tally = path, tally
        self._draw = Draw(seed, paths)
        self._infos = []
        for kind in kinds():
            info = inspect.type_info(kind)
            assert isinstance(info, inspect.StructType)
            if info.tag not in _SKIPPED:
                self._infos.append(info)
        self._sock = connected(path)

    def run(self, inputs: int, until: float) -> None:
        for n in range(inputs):
            if time.monotonic() > until:
                break
            if n % _TIDY == _TIDY - 1:
                self._tidy()
            if n % _A_CONNECTION == _A_CONNECTION - 1:
                self._connect()
            self._ask()
        self._tidy()
        self._sock.close()

    def _connect(self) -> None:
        self._sock.close()
        self._sock = connected(self._path)

    def _ask(self) -> None:
        data, changed = self._message()
        try:
            self._sock.send(data)
            found = answer(self._sock)
        except TimeoutError:
            self._tally.blame("unanswered", data, None)
            self._connect()
            return
        except OSError as error:
            found = {"code": f"closed ({error})"}
        for name in changed:
            self._tally.fields[name] += 1
        self._judge(data, found)

    def _judge(self, data: bytes, found: dict[str, Any]) -> None:
        code = found.get("code", "done") if found else "closed"
        self._tally.add(code)
        if code == "internal":
            self._tally.blame("internal", data, found["message"])
        elif code.startswith("closed"):
            # Only what is larger than any message may be is answered so.
            self._tally.blame("unanswered", data, code)
            self._connect()
        elif code != "done" and code not in TABLE:
            self._tally.blame("undocumented", data, found)
        else:
            try:
                _REPLIES.decode(json.dumps(found))
            except msgspec.DecodeError as error:
                self._tally.blame("undocumented", data, f"{error}: {found}")
        result = found.get("result") if found else None
        if isinstance(result, dict) and isinstance(result.get("id"), str):
            self._draw.know(result["id"])

    def _message(self) -> tuple[bytes, list[str]]:
        draw = self._draw.random
        info = draw.choice(self._infos)
        fields = [f for f in info.fields if (info.tag, f.encode_name) not in _WAITS]
        message: dict[str, Any] = {"op": info.tag, "id": 1}
        for field in fields:
            name = field.encode_name
            if name not in ("id", "v") and (field.required or draw.random() < 0.15):
                message[name] = (
                    self._draw.usual(field.type, name)
                    if draw.random() < 0.8
                    else ordinary(field.type)
                )
        # `id` and `v` are the same in all: they need fewer inputs.
        tried = fields if draw.random() < 0.1 else [f for f in fields if f.name not in ("id", "v")]
        chosen = draw.sample(tried, min(len(tried), draw.choice((0, 1, 1, 1, 2, 3))))
        for field in chosen:
            message[field.encode_name] = self._draw.any(field.type, field.encode_name)
        data = json.dumps(message).encode()
        if draw.random() < _RAW:
            data = self._damaged(data)
        return data, [f"{info.tag}.{field.encode_name}" for field in chosen]

    def _damaged(self, data: bytes) -> bytes:
        draw = self._draw.random
        at = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                return data[:at] or b"{"
            case 1:
                return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
            case 2:
                return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:]
        return data[:at] + data[at // 2 :]

    def _tidy(self) -> None:
        """Give back every seal, so that there are never too many."""
        while True:
            found = self._call(List).get("seals", ())
            returned = [bool(self._call(Return, seal=seal["id"])) for seal in found]
            if not any(returned):
                return

    def _call(self, kind: type[msgspec.Struct], **fields: Any) -> dict[str, Any]:
        tag = str(kind.__struct_config__.tag)
        self._sock.send(json.dumps({"op": tag, "id": 1, **fields}).encode())
        found: dict[str, Any] = answer(self._sock).get("result") or {}
        return found
