"""Logging that never blocks: records are queued, and a daemon thread writes them.

The reader of the log may stop: journald may be stuck or wait for its disk (unix_wait_for_peer), a
pipe at stderr may be full. Then the queue fills, and records for which it has no room are dropped
and counted. As soon as the log can be written again, it says how many are missing.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

ROOM = 1 << 20  # bytes of records that may wait
_LONGEST = 32 << 10  # characters of one text; a traceback might have any number

log = logging.getLogger(__name__)


class QueueHandler(logging.Handler):
    """Queues records. `encode` converts a record to bytes, on the thread that logs; `write` writes
    them, on the handler's thread, and may block and raise OSError."""

    def __init__(
        self, encode: Callable[[logging.LogRecord], bytes], write: Callable[[bytes], None]
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._encode, self._write = encode, write
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = self._missing = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; drop it when there is no room. Never blocks."""
        try:
            data = self._encode(record)
        except Exception:  # as in logging itself: a record that cannot be encoded must not raise
            data = b""
        with self._changed:
            if not data or self._size + len(data) > ROOM:
                self.dropped += 1
                self._missing += 1
                return
            self._waiting.append(data)
            self._size += len(data)
            self._changed.notify_all()

    def flush(self, seconds: float = 0.0) -> None:
        """Wait until all records are written, but at most `seconds`. The logging module calls this
        without an argument, and so does not wait."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._size and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = self._waiting.popleft()
            try:
                self._write(data)
            except OSError:
                with self._changed:
                    self.dropped += 1
            with self._changed:
                self._size -= len(data)
                missing, self._missing = self._missing, 0
                self._changed.notify_all()
            if missing:
                log.warning("%d log records were dropped: what reads the log was too slow", missing)


def shortened(text: str) -> str:
    """The text, cut to _LONGEST characters."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def log_what_python_reports() -> None:
    """Log exceptions that end threads or are raised in destructors, which Python would write to
    stderr."""

    def of_thread(arguments: threading.ExceptHookArgs) -> None:
        name = arguments.thread.name if arguments.thread else "?"
        log.error("thread %s ended", name, exc_info=_info(arguments.exc_value))

    def unraisable(arguments: sys.UnraisableHookArgs) -> None:
        what = arguments.err_msg or "exception ignored"
        log.error("%s in %r", what, arguments.object, exc_info=_info(arguments.exc_value))

    threading.excepthook = of_thread
    setattr(sys, "unraisablehook", unraisable)  # noqa: B010 (an assignment looks unused)


def _info(
    error: BaseException | None,
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    return (type(error), error, error.__traceback__) if error else None
