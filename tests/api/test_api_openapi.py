from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openapi_spec_validator
import pytest
from fastapi.routing import APIRoute

import sealsvc_api
from sealsvc.core.errors import TABLE
from sealsvc_api import health, metrics, session
from sealsvc_api.access import Action
from sealsvc_api.app import NOUNS, build_app
from sealsvc_api.description import DOCUMENTED, Application, rendered
from sealsvc_api.settings import Settings

METHODS = {"get", "post", "delete"}
NAMED = {kind.__name__: kind for kind in DOCUMENTED}


@pytest.fixture(scope="module")
def app() -> Application:
    built = build_app(Settings())
    assert isinstance(built, Application)
    return built


@pytest.fixture(scope="module")
def document(app: Application) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(rendered(app))
    return loaded


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        assert set(methods) <= METHODS
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from nodes(item)


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    served = {
        f"{method.lower()} {prefix}{route.path}"
        for prefix, router in [
            *(("/v1", noun) for noun in NOUNS),
            *(("", outside) for outside in (health.router, metrics.router, session.login_router)),
        ]
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert {name for name, _ in operations(document)} == served
    assert len(served) > 30


def test_operations_are_named_apart(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] for _, operation in operations(document))


def test_references_resolve(document: dict[str, Any]) -> None:
    refs = [node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)]
    assert refs
    for ref in refs:
        kind, name = ref.removeprefix("#/components/").split("/")
        assert name in document["components"][kind]


def test_paths_declare_their_parameters_once(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        declared = [(p["in"], p["name"]) for p in operation.get("parameters", [])]
        assert len(set(declared)) == len(declared), name
        assert (("path", "seal") in declared) is ("{seal}" in name)


def examples(document: dict[str, Any], media: dict[str, Any]) -> list[Any]:
    if "examples" in media:
        kept = document["components"]["examples"]
        return [kept[e["$ref"].rpartition("/")[2]]["value"] for e in media["examples"].values()]
    return [media["example"]]


def test_examples_are_of_their_schema(document: dict[str, Any]) -> None:
    checked = 0
    for name, operation in operations(document):
        contents = [operation["requestBody"]] if "requestBody" in operation else []
        contents += operation["responses"].values()
        for content in contents:
            for media in content.get("content", {}).values():
                if "$ref" not in media["schema"]:  # text
                    continue
                schema = NAMED[media["schema"]["$ref"].rpartition("/")[2]]
                for example in examples(document, media):
                    msgspec.convert(example, schema)
                    checked += 1
        assert contents, name
    assert checked > 50


def test_the_event_example_is_an_event(document: dict[str, Any]) -> None:
    success = document["paths"]["/v1/events"]["get"]["responses"]["200"]["content"]
    lines = success["text/event-stream"]["example"].splitlines()
    data = next(line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    assert msgspec.json.decode(data.encode(), type=NAMED["Event"])


def test_errors_are_problems(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        refused = {s: r for s, r in operation["responses"].items() if s >= "400"}
        assert {"400", "500"} <= set(refused), name
        for status, response in refused.items():
            assert set(response["content"]) == {"application/problem+json"}, name
            codes = response["content"]["application/problem+json"]["examples"]
            assert {TABLE[code].status for code in codes} == {int(status)}


def test_security_follows_the_action(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        _, path = name.split()
        gated = "x-sealsvc-action" in operation
        assert gated is (path not in ("/healthz", "/readyz") and name != "post /v1/session"), name
        assert bool(operation["security"]) is gated
        assert ("401" in operation["responses"]) is (gated or path == "/v1/session")
        if gated:
            assert Action(operation["x-sealsvc-action"])


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)


def test_requests_reject_unknown_fields(document: dict[str, Any]) -> None:
    for name in ("GrantBody", "RestHolder", "RecallBody", "AuditBody", "ValidationBody"):
        assert document["components"]["schemas"][name]["additionalProperties"] is False
    assert document["components"]["schemas"]["GrantBody"]["required"] == ["holder"]


def test_the_served_document_is_this_one(http: httpx.Client, document: dict[str, Any]) -> None:
    assert http.get("/v1/openapi.json").json() == document


def test_the_file_in_the_tree_is_this_one(app: Application) -> None:
    path = Path(sealsvc_api.__file__).parents[1] / "openapi.json"
    assert path.read_text() == rendered(app), (
        "run: python -m sealsvc_api.openapi > api/openapi.json"
    )
