from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import uvicorn

from sealsvc_api.app import build_app
from sealsvc_api.http_protocol import Protocol
from sealsvc_api.settings import Settings
from sealsvc_api.spans import Spans
from tests.api.fake_daemon import FakeDaemon
from tests.support.waiting import until

TOKEN = "correct horse"
PATIENCE = 120.0  # programs take many seconds to start where others use the processors


class _Server(uvicorn.Server):
    async def main_loop(self) -> None:
        """Without its ticks, each of which a test would wait for."""
        while not self.should_exit:
            await asyncio.sleep(0.005)


class Api:
    """The API under a real uvicorn, in a thread."""

    def __init__(self, settings: Settings, spans: Spans | None = None) -> None:
        self.app = build_app(settings, spans)
        self._sock = socket.create_server((settings.host, 0))
        self.port: int = self._sock.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app,
            http=Protocol,
            ws="websockets-sansio",
            log_level="warning",
            timeout_graceful_shutdown=1,
            proxy_headers=False,
        )
        self.server = _Server(config)
        self._thread = threading.Thread(target=self.server.run, args=([self._sock],), daemon=True)
        self._thread.start()
        until(lambda: self.server.started)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(PATIENCE)
        self._sock.close()
        assert not self._thread.is_alive()

    def client(self, token: str | None = TOKEN, **headers: str) -> httpx.Client:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.Client(base_url=self.base, headers=headers, timeout=PATIENCE)

    def ready(self) -> None:
        with self.client(None) as http:
            until(lambda: http.get("/readyz").status_code == 200)
        until(lambda: self.app.state.feed.position is not None)


def write_principals(path: Path, **entries: dict[str, object]) -> Path:
    """`token` of an entry is put down hashed."""
    lines = []
    for name, entry in entries.items():
        lines.append(f"[principal.{name}]")
        for key, value in entry.items():
            if key == "token":
                key, value = "tokens", [f"sha256:{sha256(str(value).encode()).hexdigest()}"]
            lines.append(f"{key} = {json.dumps(value)}")
    path.write_text("# who may ask\n" + "\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def principals(tmp_path: Path) -> Path:
    return write_principals(
        tmp_path / "principals.toml",
        other={"role": "viewer", "token": "another"},
        root={
            "role": "admin",
            "scopes": ["/"],
            "holders": ["*"],
            "token": TOKEN,
            "requests_per_second": 100_000,
        },
    )


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def settings(control: Path, principals: Path) -> Settings:
    return Settings(
        socket=str(control),
        principals=principals,
        heartbeat=0.2,
        shortest_backoff=0.01,
        longest_backoff=0.05,
        events_queue=16,
        events_bytes=1 << 20,
        max_listeners=3,
        send_timeout=0.5,
    )


@pytest.fixture
def daemon(control: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(control)
    yield fake
    fake.close()


@pytest.fixture
def lonely(settings: Settings) -> Iterator[Api]:
    """The API with no daemon yet."""
    server = Api(settings)
    yield server
    server.close()


@pytest.fixture
def api(daemon: FakeDaemon, lonely: Api) -> Api:
    lonely.ready()
    return lonely


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client
