"""The process that stops one export for the service: `python -m sealsvc.exports`.

A StopExport on standard input, and the outcome on standard output.
"""

from __future__ import annotations

import sys

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.core.paths import lies_below
from sealsvc.exports.launch import ENDED, stop
from sealsvc.exports.runtime import Runtime
from sealsvc.exports.stopping import Outcome, Refused
from sealsvc.protocol.exports import ExportStopped, StopExport


def main() -> int:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=StopExport)
    sys.stdout.buffer.write(msgspec.json.encode(_outcome(request)))
    return 0


def _outcome(request: StopExport) -> Outcome:
    try:
        return _stopped(request)
    except Refusal as refusal:
        return Refused(refusal.code, refusal.message)
    except OSError as error:
        return Refused("export-failed", f"{error.filename or request.name}: {error.strerror}")


def _stopped(request: StopExport) -> ExportStopped:
    runtime = Runtime()
    record = runtime.read(request.name)
    spec = record.spec
    if request.below is not None and not lies_below(spec.file, request.below):
        raise Refusal("no-such-export", f"there is no export {request.name}")
    stop(request.name, runtime, ENDED, force=request.force)
    return ExportStopped(name=spec.name, driver=spec.type, device=record.device, file=spec.file)


if __name__ == "__main__":
    sys.exit(main())
