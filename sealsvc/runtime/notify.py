"""sd_notify(3): what systemd is told. Its socket is never waited for: whoever fills its queue does
not stop the service."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

_PAUSE = 0.1  # seconds between two tries
_TRIES = 50


def notify(message: str) -> bool:
    """False when it could not be delivered now."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except BlockingIOError:
            return False
        except OSError:  # nobody is there who would want to know
            return True
    return True


async def deliver(message: str) -> None:
    """For what systemd waits for (READY=1): try again while its queue is full."""
    for _ in range(_TRIES):
        if notify(message):
            return
        await asyncio.sleep(_PAUSE)


async def pet_watchdog() -> None:
    """WatchdogSec of the unit: systemd restarts a service whose event loop hangs."""
    period = 0.0
    with suppress(ValueError):
        period = float(os.environ.get("WATCHDOG_USEC", 0)) / 1e6 / 2
    while period:
        notify("WATCHDOG=1")
        await asyncio.sleep(period)
