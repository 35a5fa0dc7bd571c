"""NBD, by nbdkit and our plugin for it (native/exports/nbd)."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Standing
from sealsvc.exports.runtime import Record
from sealsvc.exports.stats import SERVES, read_stats

_HERE = "127.0.0.1"
_BACKLOG = 128  # clients that connect again at once, while another process takes over


def plugin() -> Path:
    """Installed beside the native module, whichever directory this package is imported from."""
    native = find_spec("_sealsvc_native")
    beside = Path(native.origin).parent if native and native.origin else Path()
    return beside / "sealsvc" / "exports" / "nbdkit-sealsvc-plugin.so"


class Nbd(Standing):
    type: ClassVar[str] = "nbd"
    summary: ClassVar[str] = "NBD server: any machine, any client, no kernel module"
    options: ClassVar[dict[str, str]] = {
        "listen": "a port of 127.0.0.1 instead of a UNIX socket in the runtime directory",
        "threads": "requests at a time of one connection (nbdkit's default: 16)",
    }
    # Neither the protocol nor the kernel's client (timeout 0) has one of its own; who gives
    # nbd-client one gives it 30 s or more.
    initiator_timeout: ClassVar[float] = 30.0
    initiator: ClassVar[str] = "NBD clients (nbd-client -timeout 30)"

    @classmethod
    def missing(cls) -> str:
        if shutil.which("nbdkit") is None:
            return "nbdkit is not installed (Debian: nbdkit)"
        if not plugin().exists():
            return "sealsvc was built without nbdkit's header (Debian: nbdkit-plugin-dev)"
        return ""

    def check(self) -> None:
        for option in ("listen", "threads"):
            value = self.spec.options.get(option, "1")
            if not (value.isdecimal() and 0 < int(value) < 65536):
                raise Refusal("bad-request", f"{option}={value}: a number from 1 to 65535")

    @property
    def _socket(self) -> Path:
        return self.runtime.directory / f"{self.spec.name}.sock"

    def program(self, recover: bool) -> tuple[list[str], dict[str, str]]:
        if recover:
            self._unlink()
        if port := self.spec.options.get("listen"):
            return self._nbdkit("--ipaddr", _HERE, "--port", port), self.core_environment()
        return self._nbdkit("--unix", os.fspath(self._socket)), self.core_environment()

    def _nbdkit(self, *listening: str) -> list[str]:
        command = ["nbdkit", "--foreground", "--exportname", self.spec.name, *listening]
        if threads := self.spec.options.get("threads"):
            command += ["--threads", threads]
        if self.spec.read_only:
            command.append("--read-only")
        return [*command, os.fspath(plugin())]

    def listen(self) -> socket.socket:
        if port := self.spec.options.get("listen"):
            return socket.create_server((_HERE, int(port)), backlog=_BACKLOG)
        self._unlink()
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(os.fspath(self._socket))
        listening.listen(_BACKLOG)
        return listening

    def standing(self) -> tuple[list[str], dict[str, str]]:
        return self._nbdkit(), self.core_environment()

    def ready(self, record: Record) -> str:
        """The socket is there first, and who connects is answered when the plugin has its seal."""
        stats = read_stats(self.runtime.stats(self.spec.name))
        if stats is None or stats.pid != record.pid or stats.state not in SERVES:
            return ""
        if port := self.spec.options.get("listen"):
            return f"nbd://127.0.0.1:{port}"
        return f"nbd+unix:///?socket={quote(os.fspath(self._socket))}"

    def delete(self, record: Record) -> None:  # noqa: ARG002
        self._unlink()

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            self._socket.unlink()
