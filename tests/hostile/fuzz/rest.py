"""Inputs for the REST API: each a call of an operation that its description has, with parameters
and a body drawn at random."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jsonschema_rs

from sealsvc.core.errors import TABLE
from tests.hostile.fuzz.drawn import Draw
from tests.hostile.fuzz.tally import Tally
from tests.hostile.requests import NUMBERS, OTHERS
from tests.support.waiting import PATIENCE

# A stream that does not end, and what would log the caller out.
_SKIPPED = {("get", "/v1/events"), ("delete", "/v1/session"), ("post", "/v1/session")}
_VERBS = ("get", "post", "put", "patch", "delete")


class Rest:
    """`description` is the OpenAPI document, which each answer is compared with."""

    def __init__(
        self, base: str, description: dict[str, Any], tokens: list[str], draw: Draw, tally: Tally
    ) -> None:
        self._where = urlsplit(base)
        self._description, self._tokens = description, tokens
        self._draw, self._tally = draw, tally
        self._operations = [
            (verb, path, operation)
            for path, item in description["paths"].items()
            for verb, operation in item.items()
            if verb in _VERBS and (verb, path) not in _SKIPPED
        ]
        self._schemas: dict[str, Any] = {}
        self._connection = self._opened()

    def _opened(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self._where.hostname or "", self._where.port, timeout=PATIENCE
        )

    def run(self, inputs: int, until: float) -> None:
        for _ in range(inputs):
            if time.monotonic() > until:
                break
            self._ask(*self._draw.random.choice(self._operations))
        self._connection.close()

    def _ask(self, verb: str, path: str, operation: dict[str, Any]) -> None:
        draw = self._draw.random
        query: list[tuple[str, str]] = []
        token = draw.choice(self._tokens).encode()
        headers = {"Authorization": b"Bearer " + token}
        called = path
        changed: list[str] = []
        for parameter in operation.get("parameters", ()):
            parameter = self._resolved(parameter)
            name, where = parameter["name"], parameter["in"]
            if where != "path" and draw.random() > 0.4:
                continue
            changed.append(f"{verb} {path} {name}")
            value = self._value(parameter["schema"], name)
            text = value if isinstance(value, str) else json.dumps(value)
            if where == "path":
                called = called.replace(f"{{{name}}}", quote(text, safe="", errors="replace"))
            elif where == "query":
                query.append((name, text))
            elif where == "header":
                headers[name] = re.sub(r"[\r\n\0]", " ", text).encode("utf-8", "replace")
        body = None
        if "requestBody" in operation:
            body = self._body(operation["requestBody"], f"{verb} {path}", changed)
            headers["Content-Type"] = b"application/json"
        if query:
            called += "?" + urlencode(query, errors="replace")
        self._call(verb, called, headers, body, operation)
        for name in changed:
            self._tally.fields[name] += 1

    def _body(self, described: dict[str, Any], prefix: str, changed: list[str]) -> bytes:
        draw = self._draw.random
        schema = self._resolved(self._resolved(described)["content"]["application/json"]["schema"])
        if "anyOf" in schema:
            schema = self._resolved(draw.choice(schema["anyOf"]))
        value = self._value(schema, "", hostile=0.1)
        if isinstance(value, dict) and (fields := schema.get("properties")):
            name = draw.choice(sorted(fields))
            value = dict(value)  # it may be one of OTHERS
            value[name] = self._value(fields[name], name, hostile=0.9)
            changed += [f"{prefix} {name}" for name in value if name in fields]
            value.pop("wait", None)  # for holders that are not there
        data = json.dumps(value).encode()
        if draw.random() < 0.03:
            at = draw.randrange(len(data))
            data = data[:at] + draw.randbytes(draw.randrange(4)) + data[at + 1 :]
        return data

    def _value(self, schema: dict[str, Any], name: str, hostile: float = 0.5) -> Any:
        draw, schema = self._draw.random, self._resolved(schema)
        if draw.random() < hostile * 0.3:
            return draw.choice([*OTHERS, *NUMBERS, self._draw.text(), self._draw.text()])
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self._value(draw.choice(schema[union]), name, hostile)
        if "enum" in schema and draw.random() > hostile * 0.5:
            return draw.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        match schema.get("type"):
            case "object":
                needed = schema.get("required", ())
                return {
                    key: self._value(value, key, hostile)
                    for key, value in schema.get("properties", {}).items()
                    if key in needed or draw.random() < 0.3
                }
            case "array":
                count = draw.randrange(3)
                return [self._value(schema.get("items", {}), name, hostile) for _ in range(count)]
            case "integer" | "number":
                if draw.random() < hostile:
                    return self._draw.number()
                return max(int(schema.get("minimum", 0)), draw.choice((0, 1, 5, 4096)))
            case "boolean":
                return draw.random() < 0.5
            case "null":
                return None
        if draw.random() < hostile:
            return self._draw.text()
        known = self._draw.names if "pattern" in schema else self._draw.paths
        return draw.choice(known or ["0" * 24])

    def _call(
        self,
        verb: str,
        called: str,
        headers: dict[str, bytes],
        body: bytes | None,
        operation: dict[str, Any],
    ) -> None:
        sent = f"{verb.upper()} {called} {body!r}"
        try:
            self._connection.request(verb.upper(), called, body, headers)
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = self._opened()
            # The server may close a connection that it has kept for long; once is not a finding.
            self._tally.add("closed")
            self._tally.blame("unanswered", sent, error)
            return
        found = self._judged(answer, data, operation)
        code = ""
        if "json" in (answer.headers.get("Content-Type") or ""):
            try:
                decoded = json.loads(data)
            except ValueError:
                found.append("the body is no JSON")
            else:
                code = decoded.get("code", "") if isinstance(decoded, dict) else ""
                for id in _ids(decoded):
                    self._draw.know(id)
        self._tally.add(f"{answer.status} {code}".strip())
        if answer.status >= 500:
            self._tally.blame("5xx", sent, data)
        if code == "internal":
            self._tally.blame("internal", sent, data)
        if found:
            self._tally.blame("undocumented", sent, f"{answer.status} {found} {data!r}")

    def _judged(
        self, answer: http.client.HTTPResponse, data: bytes, operation: dict[str, Any]
    ) -> list[str]:
        """What of the answer is not as described."""
        described = operation["responses"].get(str(answer.status))
        if described is None:
            return [f"status {answer.status} is not described"]
        content = self._resolved(described).get("content", {})
        type_ = (answer.headers.get("Content-Type") or "").partition(";")[0]
        if not content:
            return [f"a body that is not described ({type_})"] if data else []
        if type_ not in content:
            return [f"content type {type_} is not described"]
        if "json" not in type_:
            return []
        value = json.loads(data)
        found = []
        if "problem" in type_ and value.get("code") not in TABLE:
            found.append(f"code {value.get('code')} is not described")
        schema = content[type_].get("schema")
        if schema is not None:
            try:
                self._validator(schema).validate(value)
            except jsonschema_rs.ValidationError as error:
                found.append(str(error)[:300])
        return found

    def _validator(self, schema: dict[str, Any]) -> Any:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._schemas:
            whole = {**schema, "components": self._description.get("components", {})}
            self._schemas[key] = jsonschema_rs.Draft202012Validator(whole)
        return self._schemas[key]

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            found: Any = self._description
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        return schema


def _ids(value: Any) -> Iterator[str]:
    """Ids of seals, jobs and so on in an answer."""
    match value:
        case {"id": str(id), **_rest}:
            yield id
        case list():
            for item in value[:4]:
                yield from _ids(item)
        case dict():
            for item in value.values():
                yield from _ids(item)
