from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from api.auth import Tokens, digest, read_tokens
from api.openapi import Application
from api.settings import Settings, SettingsError, check_bind, is_loopback
from tests.api.conftest import TOKEN, Api
from tests.api.fake_daemon import FakeDaemon

BODY = {"path": "/srv/a", "holder": {"pid": 1}}
CHANGES = [
    ("POST", "/v1/seals", BODY),
    ("DELETE", "/v1/seals/" + "0" * 24, None),
    ("POST", "/v1/seals/" + "0" * 24 + "/validation", {}),
    ("POST", "/v1/recalls", {"all": True}),
    ("POST", "/v1/audits", {}),
]
READS = ["/v1/seals", "/v1/filesystems", "/v1/status"]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic Zm9vOmJhcg==", TOKEN])
def test_changes_are_denied_without_a_valid_token(
    api: Api, daemon: FakeDaemon, method: str, path: str, body: object, header: str | None
) -> None:
    before = len(daemon.requests)
    with api.client(None, **({"Authorization": header} if header else {})) as http:
        answer = http.request(method, path, json=body)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthenticated"
    assert len(daemon.requests) == before, "the daemon must not hear of it"


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_changes_are_allowed_with_each_token(
    api: Api, method: str, path: str, body: object
) -> None:
    for token in (TOKEN, "another"):
        with api.client(token) as http:
            assert http.request(method, path, json=body).status_code not in (401, 403)


def test_the_table_of_changes_is_complete(api: Api) -> None:
    app = api.app
    assert isinstance(app, Application)
    documented = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if method != "get"
    }
    assert documented == {(m, p.replace("0" * 24, "{seal}")) for m, p, _ in CHANGES}
    assert not [r for r in app.routes if isinstance(r, APIRoute) and "PATCH" in (r.methods or ())]


@pytest.mark.parametrize("path", READS)
def test_reads_are_open_on_loopback(api: Api, path: str) -> None:
    with api.client(None) as http:
        assert http.get(path).status_code == 200


@pytest.mark.parametrize("path", READS)
def test_a_wrong_token_is_refused_even_for_a_read(api: Api, path: str) -> None:
    with api.client("wrong") as http:
        assert http.get(path).status_code == 401


@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "192.0.2.7"}, {"Host": "evil.example"}])
def test_reads_from_elsewhere_need_a_token(api: Api, headers: dict[str, str]) -> None:
    """A proxied remote caller, and a name re-bound to loopback in a browser."""
    with api.client(None) as http:
        assert http.get("/v1/status", headers=headers).status_code == 401
    with api.client() as http:
        assert http.get("/v1/status", headers=headers).status_code == 200


def test_health_and_the_description_are_open_to_all(api: Api) -> None:
    with api.client(None, Host="evil.example") as http:
        for path in ("/healthz", "/readyz", "/v1/openapi.json"):
            assert http.get(path).status_code == 200


def test_no_token_file_accepts_nothing() -> None:
    tokens = read_tokens(None)
    assert not tokens.accepts("")
    assert not tokens.accepts("x")
    assert Tokens((digest("x"),)).accepts("x")


def test_a_bad_line_is_named_and_not_quoted(token_file: Path) -> None:
    token_file.write_text(f"sha256:{hashlib.sha256(b'x').hexdigest()}\nplain-secret\n")
    with pytest.raises(SettingsError, match=":2:") as caught:
        read_tokens(token_file)
    assert "plain-secret" not in str(caught.value)


def test_a_token_file_that_others_may_write_is_refused(token_file: Path) -> None:
    token_file.chmod(0o666)
    with pytest.raises(SettingsError, match="chmod"):
        read_tokens(token_file)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        read_tokens(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_binding_beyond_loopback_must_be_meant(token_file: Path) -> None:
    with pytest.raises(SettingsError, match="allow-remote"):
        check_bind(Settings(host="0.0.0.0", token_file=token_file))
    with pytest.raises(SettingsError, match="token-file"):
        check_bind(Settings(host="0.0.0.0", allow_remote=True))
    check_bind(Settings(host="0.0.0.0", allow_remote=True, token_file=token_file))
    check_bind(Settings())
