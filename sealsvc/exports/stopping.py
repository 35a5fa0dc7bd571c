"""Stopping an export for somebody without the privilege to do it: the API asks the service.

The service starts `python -m sealsvc.exports`, which does what `sealctl export stop` does: it waits
for processes and for the kernel, and neither may keep the service from answering others.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from sealsvc.core.errors import TABLE, Refusal
from sealsvc.protocol.exports import ExportStopped, StopExport

_WITHIN = 60.0  # seconds


class Refused(msgspec.Struct, tag_field="type", tag="refused"):
    code: str
    message: str


Outcome = ExportStopped | Refused


async def stop_export(request: StopExport) -> ExportStopped:
    """Raises Refusal as `sealctl export stop` does, and `export-failed` after a minute."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sealsvc.exports"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_WITHIN):
            told, said = await child.communicate(msgspec.json.encode(request))
    except TimeoutError:
        raise Refusal(
            "export-failed",
            f"export {request.name} did not stop within {_WITHIN:g} s; `sealctl export show"
            f" {request.name}` tells its state",
            {"export": request.name},
        ) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _outcome(request.name, told, said)


def _outcome(name: str, told: bytes, said: bytes) -> ExportStopped:
    try:
        found: Outcome = msgspec.json.decode(told, type=Outcome)
    except msgspec.DecodeError:
        why = said.decode(errors="replace")[-500:].strip()
        raise Refusal("export-failed", f"stopping export {name} failed: {why}") from None
    if isinstance(found, Refused):
        code = found.code if found.code in TABLE else "export-failed"
        raise Refusal(code, found.message, {"export": name})
    return found
