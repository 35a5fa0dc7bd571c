"""How a caller is known: tokens, sessions, certificates, peers; and the limits that hold before."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Grant, List
from sealsvc_api.principals import Known, Principals, digest, read
from sealsvc_api.rates import Rates
from sealsvc_api.sessions import COOKIE, LIFE, Sessions
from sealsvc_api.settings import Settings, SettingsError, check_bind, is_loopback
from tests.api.conftest import TOKEN, Api, write_principals
from tests.api.fake_daemon import FakeDaemon
from tests.api.test_api_serve import serving
from tests.support.waiting import PATIENCE, until

BODY = {"path": "/srv/a", "holder": {"pid": 1}}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic Zm9vOmJhcg==", TOKEN])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_valid_token_nothing_is_told(
    api: Api, daemon: FakeDaemon, method: str, header: str | None
) -> None:
    with api.client(None, **({"Authorization": header} if header else {})) as http:
        answer = http.request(method, "/v1/seals", json=BODY if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthenticated"
    assert not daemon.asked(List), "the daemon must not hear of it"
    assert not daemon.asked(Grant)


def test_health_and_the_description_are_open_to_all(api: Api) -> None:
    with api.client(None) as http:
        for path in ("/healthz", "/readyz", "/v1/openapi.json", "/dashboard/"):
            assert http.get(path).status_code == 200


# The file


def test_a_token_is_rotated_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    path = write_principals(tmp_path / "p", alice={"role": "viewer", "token": "old"})
    principals = Principals(path, clock)
    assert principals.known.by_token("old")
    write_principals(path, alice={"role": "operator", "token": "newer"})
    clock.now += 2
    assert principals.known.by_token("old") is None
    found = principals.known.by_token("newer")
    assert found is not None
    assert (found.name, found.role, found.how) == ("alice", "operator", "token")


def test_a_file_that_cannot_be_read_any_more_leaves_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    path = write_principals(tmp_path / "p", alice={"role": "viewer", "token": "t"})
    principals = Principals(path, clock)
    path.write_text("[principal.alice\n")
    clock.now += 2
    assert principals.known.by_token("t") is None
    assert "nobody is known" in caplog.text
    path.unlink()
    clock.now += 2
    assert principals.known.by_token("t") is None


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"role": "king"}, "role"),
        ({"role": "viewer", "tokens": ["plain-secret"]}, "sha256"),
        ({"role": "viewer", "scopes": ["srv"]}, "absolute"),
        ({"role": "viewer", "scopes": ["/srv/../etc"]}, "absolute"),
        ({"role": "viewer", "holders": ["alice"]}, "user ids"),
        ({"role": "viewer", "surprise": 1}, "surprise"),
        ({}, "role"),
    ],
)
def test_a_mistake_is_named_and_no_token_quoted(
    tmp_path: Path, entry: dict[str, object], told: str
) -> None:
    path = write_principals(tmp_path / "p", alice=entry)
    with pytest.raises(SettingsError, match=told) as caught:
        read(path)
    assert "plain-secret" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = write_principals(tmp_path / "p", alice={"role": "viewer"})
    path.chmod(0o666)
    with pytest.raises(SettingsError, match="chmod"):
        read(path)
    with pytest.raises(SettingsError, match="cannot read"):
        read(tmp_path / "none")


def test_nobody_is_known_without_a_file() -> None:
    known = Principals(None).known
    assert known.by_token("") is None
    assert known.by_peer(0, frozenset({0})) is None
    assert known.by_certificate(frozenset()) is None
    assert Known({}).by_proof(digest("")) is None


# Sessions


@pytest.fixture
def browser(api: Api) -> httpx.Client:
    return api.client(None)


def login(http: httpx.Client, token: str = TOKEN) -> str:
    answer = http.post("/v1/session", json={"token": token})
    assert answer.status_code == 201
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    return str(answer.json()["csrf"])


def test_a_session_reads_with_the_cookie_and_changes_with_the_csrf_token(
    browser: httpx.Client,
) -> None:
    with browser as http:
        csrf = login(http)
        told = http.get("/v1/session").json()
        assert (told["name"], told["how"], told["csrf"]) == ("root", "session", csrf)
        assert "policy.change" in told["actions"]
        assert http.get("/v1/seals").status_code == 200
        for wrong in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": csrf, "Origin": "http://evil"}):
            answer = http.post("/v1/seals", json=BODY, headers=wrong)
            assert (answer.status_code, answer.json()["code"]) == (403, "denied")
        right = {"X-CSRF-Token": csrf}
        assert http.post("/v1/seals", json=BODY, headers=right).status_code == 201
        assert http.delete("/v1/session", headers=right).status_code == 200
        assert http.get("/v1/seals").status_code == 401


def test_a_session_needs_a_token_that_is_known(browser: httpx.Client) -> None:
    with browser as http:
        assert http.post("/v1/session", json={"token": "wrong"}).status_code == 401
        http.cookies.set(COOKIE, "made up")
        assert http.get("/v1/seals").status_code == 401


def test_logins_have_a_rate(browser: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealsvc_api.session.LOGINS_PER_SECOND", 0.1)  # slower than any machine
    with browser as http:
        codes = [http.post("/v1/session", json={"token": "x"}).status_code for _ in range(20)]
        assert set(codes) == {401, 429}
        login(http)  # whoever is known is let in meanwhile


def test_a_session_ends_with_its_token(api: Api, principals: Path) -> None:
    with api.client(None) as http:
        login(http)
        write_principals(principals, root={"role": "admin", "scopes": ["/"], "token": "newer"})
        until(lambda: http.get("/v1/seals").status_code == 401)


def test_sessions_are_bounded_in_time_and_number() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    cookie, _ = sessions.begin(b"proof")
    assert sessions.find(cookie)
    clock.now += LIFE + 1
    assert sessions.find(cookie) is None
    clock.now -= LIFE
    other, _ = sessions.begin(b"another")
    for _ in range(64):
        sessions.begin(b"proof")
    assert sessions.find(cookie) is None
    assert sessions.find(other), "one token's sessions push out no other's"


# Other proofs


def test_a_peer_on_the_unix_socket(daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    principals = write_principals(
        tmp_path / "p.toml", local={"role": "operator", "scopes": ["/"], "users": [os.getuid()]}
    )
    arguments = ("--socket", daemon.path, "--principals", principals, "--unix", path)
    with serving(*map(str, arguments)) as program:
        base = program.base
        transport = httpx.HTTPTransport(uds=str(path))
        until(path.exists)
        with httpx.Client(
            transport=transport, base_url="http://localhost", timeout=PATIENCE
        ) as http:
            until(lambda: http.get("/readyz").status_code == 200)
            told = http.get("/v1/session").json()
            assert (told["name"], told["how"]) == ("local", "peer")
        with httpx.Client(base_url=base, timeout=PATIENCE) as http:
            assert http.get("/v1/session").status_code == 401, "the network has no uid"


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def certificates(directory: Path) -> None:
    """An authority, a server, and two clients: one of the authority, one of its own making."""
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(directory, *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name, names in [("server", "IP:127.0.0.1"), ("alice", "DNS:alice.example")]:
        issued = ("-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/CN={name}")
        more = ("-addext", f"subjectAltName={names}", "-addext", "basicConstraints=CA:FALSE")
        openssl(directory, *new, *issued, *more, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    more = ("-addext", "subjectAltName=DNS:alice.example", "-subj", "/CN=alice")
    openssl(directory, *new, *more, "-keyout", "forged.key", "-out", "forged.pem")


def test_client_certificates(daemon: FakeDaemon, tmp_path: Path) -> None:
    certificates(tmp_path)
    principals = write_principals(
        tmp_path / "p.toml", alice={"role": "viewer", "certificates": ["alice.example"]}
    )
    arguments = ("--socket", daemon.path, "--principals", principals)
    tls = ("--tls-cert", "server.pem", "--tls-key", "server.key", "--client-ca", "ca.pem")
    full = [str(tmp_path / part) if part.endswith((".pem", ".key")) else part for part in tls]
    with serving(*map(str, arguments), *full) as program:
        base = program.base
        assert base.startswith("https://")

        def client(name: str) -> httpx.Client:
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            if name:
                context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
            return httpx.Client(base_url=base, verify=context, timeout=PATIENCE)

        with client("alice") as http:
            until(lambda: http.get("/readyz").status_code == 200)
            told = http.get("/v1/session").json()
            assert (told["name"], told["how"]) == ("alice", "certificate")
        with client("") as http:
            assert http.get("/v1/session").status_code == 401
        with client("server") as http:
            assert http.get("/v1/session").status_code == 401, "signed, but not listed"
        with client("forged") as http, pytest.raises(httpx.TransportError):
            http.get("/v1/session")

        def sealctl(*options: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "sealsvc.cli.sealctl", "--url", base, "status"]
            return subprocess.run(
                [*command, *options], capture_output=True, text=True, timeout=60, cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip

        shown = ("--cert", "alice.pem", "--key", "alice.key")
        assert "version" in sealctl("--cacert", "ca.pem", *shown).stdout
        assert sealctl("--cacert", "ca.pem").returncode == 3
        assert sealctl(*shown).returncode == 7, "signed by nobody that the system knows"
        assert sealctl("--cacert", "ca.pem", "--cert", "ca.pem").returncode == 2, "without a key"


# Limits


def test_each_principal_has_its_rate() -> None:
    clock = Clock()
    rates = Rates(clock)
    left = [rates.take("a", 2.0).left for _ in range(4)]
    assert left == [3, 2, 1, 0]
    with pytest.raises(Refusal) as caught:
        rates.take("a", 2.0)
    assert caught.value.code == "limit-reached"
    assert caught.value.retry_after == pytest.approx(0.5)
    assert rates.take("b", 2.0).left == 3
    clock.now += 0.5
    assert rates.take("a", 2.0).left == 0


def test_rates_are_told(http: httpx.Client) -> None:
    answer = http.get("/v1/status")
    assert answer.headers["ratelimit-policy"] == '"principal";q=200000;w=2'
    assert answer.headers["ratelimit"].startswith('"principal";r=19999')


def test_what_every_answer_carries(http: httpx.Client) -> None:
    for path in ("/v1/status", "/dashboard/", "/v1/nothing"):
        headers = http.get(path, headers={"X-Request-ID": "abcd-1234"}).headers
        assert headers["x-request-id"] == "abcd-1234"
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    assert len(http.get("/healthz", headers={"X-Request-ID": "a b"}).headers["x-request-id"]) == 16
    assert http.get("/healthz", headers={"X-Request-ID": "7"}).headers["x-request-id"] == "7"


def test_every_change_is_written_down(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sealsvc.api.trail")
    seal = http.post("/v1/seals", json=BODY).json()["id"]
    http.delete(f"/v1/seals/{seal}")
    http.delete(f"/v1/seals/{seal}", headers={"Authorization": "Bearer wrong"})
    http.get("/v1/seals")
    until(lambda: len(caplog.records) >= 3)
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    told = [(f["SEALSVC_PRINCIPAL"], f["SEALSVC_SEAL"], f["SEALSVC_STATUS"]) for f in fields]
    assert told == [("root", "", 201), ("root", seal, 200), ("", seal, 401)]


def _refused(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionError:
        return True


def test_header_fields_and_connections_are_bounded(daemon: FakeDaemon, tmp_path: Path) -> None:
    arguments = ("--socket", str(daemon.path), "--max-connections", "4")
    with serving(*arguments) as program:
        base = program.base
        port = int(base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 40_000)
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        held = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(4)]
        time.sleep(0.1)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as fifth:
                # It takes the place of the one that has been silent longest.
                fifth.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert fifth.recv(100).startswith(b"HTTP/1.1 200")
            assert _refused(held[0])
            held[1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held[1].recv(100).startswith(b"HTTP/1.1 200")
        finally:
            for sock in held:
                sock.close()


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


def test_binding_beyond_loopback_must_be_meant(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="allow-remote"):
        check_bind(Settings(host="0.0.0.0"))
    check_bind(Settings(host="0.0.0.0", allow_remote=True))
    check_bind(Settings(host="0.0.0.0", tls_cert=tmp_path, tls_key=tmp_path))
    with pytest.raises(SettingsError, match="belong together"):
        check_bind(Settings(tls_cert=tmp_path))
    with pytest.raises(SettingsError, match="client-ca"):
        check_bind(Settings(client_ca=tmp_path))
    check_bind(Settings())
