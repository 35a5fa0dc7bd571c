"""Reloads the configuration: changes of [policy] take effect while the service runs; the report
names the other changes, which take effect at a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import PolicyReport
from sealsvc.runtime import config
from sealsvc.runtime.config import Config, ConfigError, PolicySection


class PolicyFile:
    """The configuration file. `take(section, changed)` passes a new [policy], and the keys that
    changed, to the parts that use it. `source` is the file (None: there is none). `overrides` adds
    what the command line set.

    All methods return a report that compares the file (or text) with the running configuration.
    They raise Refusal `bad-request` when it cannot be parsed."""

    def __init__(
        self,
        running: Config,
        take: Callable[[PolicySection, list[str]], None],
        source: Path | None = None,
        overrides: Callable[[Config], Config] = lambda found: found,
    ) -> None:
        self.running, self._take = running, take
        self.source, self.overrides = source, overrides

    def show(self) -> PolicyReport:
        """The running policy."""
        return self._report(self.running)

    def check(self, text: str) -> PolicyReport:
        """What the configuration `text` would change. Nothing is applied."""
        return self._report(self._parsed(text.encode()))

    def reload(self) -> PolicyReport:
        """Read the file again and apply its [policy]. Raises Refusal also without a file, and
        `io-error` when it cannot be read."""
        if self.source is None:
            raise Refusal("bad-request", "the service was started without a configuration file")
        try:
            data = self.source.read_bytes()
        except OSError as error:
            raise Refusal("io-error", f"{self.source}: {error.strerror}") from error
        found = self._parsed(data)
        report = self._report(found)
        self._take(found.policy, report.changed)
        self.running = msgspec.structs.replace(self.running, policy=found.policy)
        return report

    def _parsed(self, data: bytes) -> Config:
        try:
            return self.overrides(config.parse(data, self.source))
        except ConfigError as error:
            raise Refusal("bad-request", str(error), {"field": "text"}) from None

    def _report(self, found: Config) -> PolicyReport:
        before = msgspec.to_builtins(self.running)
        after = msgspec.to_builtins(found)
        restart = [
            f"{section}.{key}"
            for section in after
            if section != "policy"
            for key in after[section]
            if after[section][key] != before[section][key]
        ]
        policy = after["policy"]
        changed = sorted(key for key in policy if policy[key] != before["policy"][key])
        source = str(self.source or "")
        return PolicyReport(source=source, policy=policy, changed=changed, restart=restart)
