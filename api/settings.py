"""What an operator may choose, checked once at start."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from sealsvc.client import socket_path


class SettingsError(Exception):
    """The API cannot start as it was asked to; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times are seconds. `events_queue` is how many events one SSE client may lag behind before
    it is dropped; `events_clients` how many may listen at once."""

    host: str = "127.0.0.1"
    port: int = 8377
    socket: str = ""
    token_file: Path | None = None
    allow_remote: bool = False
    events_queue: int = 256
    events_clients: int = 64
    heartbeat: float = 15.0
    send_timeout: float = 10.0
    shortest_backoff: float = 0.1
    longest_backoff: float = 5.0

    @property
    def control_socket(self) -> str:
        return self.socket or socket_path()


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address literal, or the name localhost. Other names are not
    looked up: what they mean is in somebody else's hands."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(settings: Settings) -> None:
    """Refuse to listen where others can reach it, unless that was meant and tokens exist."""
    if is_loopback(settings.host):
        return
    if not settings.allow_remote:
        raise SettingsError(
            f"{settings.host} is not a loopback address, and this API speaks plain HTTP: bearer"
            " tokens would cross the network in the clear. Put a TLS proxy in front of a loopback"
            " address, or give --allow-remote if the network is trusted."
        )
    if settings.token_file is None:
        raise SettingsError(
            "--allow-remote needs --token-file: callers that are not on loopback must show a token"
            " even to read."
        )


def listen(settings: Settings) -> socket.socket:
    """The bound socket. It is bound here so that a port in use is one line, not a traceback."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise SettingsError(f"cannot listen on {where}: {error.strerror or error}") from None
