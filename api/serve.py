"""sealsvc-api: run the REST API."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from api.app import build_app
from api.settings import Settings, SettingsError, check_bind, listen

log = logging.getLogger("sealsvc.api")

DRAIN = 5  # seconds that requests in flight are given at shutdown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sealsvc-api",
        description="The REST API of sealsvc: an unprivileged client of its control socket.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8377, help="port (%(default)s; 0: any free)")
    parser.add_argument("--socket", default="", help="control socket (default: SEALSVC_SOCKET)")
    parser.add_argument("--token-file", type=Path, help="one sha256:HEX per line; none: read-only")
    parser.add_argument(
        "--allow-remote", action="store_true", help="listen on an address that is not loopback"
    )
    return parser


def _settings(argv: Sequence[str] | None) -> Settings:
    return Settings(**vars(_parser().parse_args(argv)))


def _advise(settings: Settings) -> None:
    if os.geteuid() == 0:
        log.warning("running as root: the API needs no privilege, give it a user of its own")
    if settings.token_file is None:
        log.warning("no --token-file: every request that changes something is refused")


def _run(settings: Settings) -> None:
    check_bind(settings)
    app = build_app(settings)
    with listen(settings) as sock:
        _advise(settings)
        config = uvicorn.Config(
            app,
            ws="none",
            log_level="info",
            server_header=False,
            timeout_graceful_shutdown=DRAIN,
        )
        log.info("listening on http://%s:%d", settings.host, sock.getsockname()[1])
        uvicorn.Server(config).run(sockets=[sock])


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        _run(_settings(argv))
    except SettingsError as error:
        print(f"sealsvc-api: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
