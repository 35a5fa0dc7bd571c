"""sealsvc-api: run the REST API, or make a token for it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from sealsvc.runtime import activation
from sealsvc.runtime.journald import configure
from sealsvc_api.app import build_app, probe_app
from sealsvc_api.envelope import REQUEST_ID
from sealsvc_api.http_protocol import HEAD_TIMEOUT, Protocol
from sealsvc_api.principals import TOKEN_BYTES, digest
from sealsvc_api.settings import (
    Settings,
    SettingsError,
    check_bind,
    listen,
    listen_for_probes,
    listen_unix,
    raise_descriptor_limit,
    traced,
)

if TYPE_CHECKING:
    from sealsvc_api.spans import Spans

log = logging.getLogger("sealsvc.api")

DRAIN = 5  # seconds that requests in flight are given at shutdown
HEADERS = 16 * 1024  # bytes of a request's line and header fields


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="sealsvc-api",
        description="The REST API of sealsvc: an unprivileged client of its control socket.",
        epilog="`sealsvc-api --new-token` prints a token, and the line for the principals file.",
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    made.add_argument("--port", type=int, default=8377, help="port (%(default)s; 0: any free)")
    made.add_argument("--unix", type=Path, help="listen on a UNIX socket, too")
    made.add_argument("--unix-mode", default="0666", help="mode of that socket (%(default)s)")
    made.add_argument("--socket", default="", help="control socket (default: SEALSVC_SOCKET)")
    made.add_argument("--principals", type=Path, help="who may ask (TOML); none: nobody")
    made.add_argument("--tls-cert", type=Path, help="certificate chain (PEM)")
    made.add_argument("--tls-key", type=Path, help="its key (PEM)")
    made.add_argument("--client-ca", type=Path, help="who signs clients' certificates (PEM)")
    made.add_argument(
        "--max-connections",
        type=_count,
        default=512,
        help="connections at a time, on the network and on UNIX sockets each (%(default)s)",
    )
    made.add_argument(
        "--max-listeners",
        type=_count,
        default=256,
        help="clients that follow the events at a time; each takes a connection (%(default)s)",
    )
    made.add_argument(
        "--probes",
        default="",
        metavar="HOST:PORT",
        help="answer /healthz and /readyz on an address of their own, too",
    )
    made.add_argument(
        "--allow-remote",
        action="store_true",
        help="plain HTTP on an address that is not loopback",
    )
    made.add_argument("--new-token", action="store_true", help="make a token, and end")
    return made


def _settings(arguments: argparse.Namespace) -> Settings:
    given = vars(arguments)
    del given["new_token"]
    return Settings(**given)


def _advise(settings: Settings) -> None:
    if os.geteuid() == 0:
        log.warning("running as root: the API needs no privilege, give it a user of its own")
    if settings.principals is None:
        log.warning("no --principals: everybody is refused")


class _Server(uvicorn.Server):
    """One of several in a process: signals are for all of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: FastAPI, settings: Settings, *, tls: bool, first: bool) -> uvicorn.Config:
    protocol = type("Limited", (Protocol,), {"most": settings.max_connections})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="websockets-sansio",
        ws_max_size=64 * 1024,
        ws_max_queue=8,
        lifespan="on" if first else "off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADERS,
        timeout_graceful_shutdown=DRAIN,
        ssl_certfile=settings.tls_cert if tls else None,
        ssl_keyfile=settings.tls_key if tls else None,
        ssl_ca_certs=str(settings.client_ca) if tls and settings.client_ca else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if tls and settings.client_ca else ssl.CERT_NONE,
    )
    if tls:
        config.load()
        assert config.ssl is not None
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def _hurry_handshakes(loop: asyncio.AbstractEventLoop) -> None:
    """uvicorn cannot be told a limit for TLS handshakes, and asyncio's own is a minute."""
    create: Callable[..., Awaitable[asyncio.Server]] = loop.create_server

    async def hurried(*arguments: Any, **named: Any) -> asyncio.Server:
        if named.get("ssl"):
            named["ssl_handshake_timeout"] = HEAD_TIMEOUT
        return await create(*arguments, **named)

    loop.create_server = hurried  # type: ignore[method-assign]


async def _serve(servers: list[tuple[_Server, list[socket]]]) -> None:
    loop = asyncio.get_running_loop()
    _hurry_handshakes(loop)

    def stop() -> None:
        for server, _ in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await asyncio.gather(*(server.serve(sockets=socks) for server, socks in servers))


def _listeners(settings: Settings) -> tuple[list[socket], list[socket]]:
    """Of the network, and of UNIX sockets; those that systemd passed go before our own."""
    passed = activation.listeners()
    if passed:
        unix = [sock for sock in passed if sock.family == AF_UNIX]
        return [sock for sock in passed if sock.family != AF_UNIX], unix
    unix = [listen_unix(settings.unix, settings.unix_mode)] if settings.unix else []
    return [listen(settings.host, settings.port)], unix


def _spans() -> Spans | None:
    if not traced(os.environ):
        return None
    try:
        from sealsvc_api import spans
    except ImportError as error:
        raise SettingsError(
            f"OTEL_* variables ask for traces, which take packages that are not here ({error}):"
            " pip install 'sealsvc[trace]', or unset the variables"
        ) from None
    return spans.over_http()


def _run(settings: Settings) -> None:
    check_bind(settings)
    spans = _spans()
    app = build_app(settings, spans)
    network, unix = _listeners(settings)
    probes = [listen_for_probes(settings)] if settings.probes else []
    with ExitStack() as stack:
        for sock in (*network, *unix, *probes):
            stack.enter_context(sock)
        if spans:
            stack.callback(spans.close)
        _advise(settings)
        raise_descriptor_limit()
        tls = settings.tls_cert is not None
        servers: list[tuple[_Server, list[socket]]] = []
        for socks, served, encrypted in (
            (network, app, tls),
            (unix, app, False),
            (probes, probe_app(app), False),
        ):
            if socks:
                config = _config(served, settings, tls=encrypted, first=not servers)
                servers.append((_Server(config), socks))
        for sock in network:
            where = sock.getsockname()[1]
            log.info("listening on %s://%s:%d", "https" if tls else "http", settings.host, where)
        for sock in unix:
            log.info("listening on %s", sock.getsockname())
        for sock in probes:
            log.info("probes are answered on http://%s:%d", *sock.getsockname()[:2])
        asyncio.run(_serve(servers))


def _new_token() -> None:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    print(f"token (it is shown once):  {token}")
    print(f'for the principals file:   tokens = ["sha256:{digest(token).hex()}"]')


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.new_token:
        _new_token()
        return 0
    configure("info", lambda: {"SEALSVC_REQUEST": REQUEST_ID.get()})
    try:
        _run(_settings(arguments))
    except SettingsError as error:
        print(f"sealsvc-api: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
