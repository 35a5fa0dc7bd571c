"""Notifications to systemd (sd_notify(3)). They never block: a full queue of systemd's socket must
not stop the service."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

_PAUSE = 0.1  # seconds between two tries
_TRIES = 50


def notify(message: str) -> bool:
    """Send a message. False when the queue is full. True also when no one listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except BlockingIOError:
            return False
        except OSError:  # nobody listens
            return True
    return True


async def deliver(message: str) -> None:
    """Send a message for which systemd waits (READY=1). Retries while the queue is full, for
    _TRIES * _PAUSE seconds."""
    for _ in range(_TRIES):
        if notify(message):
            return
        await asyncio.sleep(_PAUSE)


async def pet_watchdog() -> None:
    """Send WATCHDOG=1 twice in each WatchdogSec of the unit: systemd restarts a service whose event
    loop hangs. Returns at once where no watchdog is set."""
    period = 0.0
    with suppress(ValueError):
        period = float(os.environ.get("WATCHDOG_USEC", 0)) / 1e6 / 2
    while period:
        notify("WATCHDOG=1")
        await asyncio.sleep(period)
