"""The canary of the bpf enforcer: a file of our own on which the keeper tries, every second,
operations that the programs must refuse (native/keeper/canary.c)."""

from __future__ import annotations

import os
from contextlib import suppress

from sealsvc.core.model import ByteRange
from sealsvc.enforce.base import Guard, Verdict
from sealsvc.enforce.bpf_programs import Programs, check
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.linux.native import ffi, lib

# The trials, with the programs that each one needs.
_TRIALS: tuple[tuple[int, str, frozenset[str]], ...] = (
    (lib.KEEPER_CANARY_TRUNCATE, "truncate", frozenset()),
    (lib.KEEPER_CANARY_FALLOCATE, "fallocate", frozenset({"fallocate"})),
    (lib.KEEPER_CANARY_COPY, "copy_file_range", frozenset({"copy"})),
    (lib.KEEPER_CANARY_IOCTL, "ioctl", frozenset({"file_ioctl"})),
    (lib.KEEPER_CANARY_ATOMIC, "an atomic write", frozenset({"writev"})),
)
_TOKEN = (1 << 64) - 2  # not a token that a seal can have


class BpfCanary:
    """The canary's file, and how its trials went. `file` is its device (MKDEV) and inode."""

    def __init__(self, keeper: Keeper, programs: Programs) -> None:
        """Give the keeper a memfd for its trials. It is guarded with the verdict ARMING, so that
        refusals on it are not reported. Raises Refusal `io-error`."""
        self._keeper = keeper
        self._before = self._since = 0  # how often trials began to pass: of earlier files, of ours
        on = programs.on()
        trials = sum(trial for trial, _, needed in _TRIALS if needed <= on)
        size = 2 * lib.KEEPER_CANARY_BLOCK
        fd = os.memfd_create("sealsvc-canary")
        try:
            os.ftruncate(fd, size)
            key = ffi.new("struct seal_bpf_file *")
            check(lib.seal_bpf_identify(fd, key), "fstat")
            self.file: tuple[int, int] = (key.device, key.inode)
            guard = Guard(_TOKEN, ByteRange(0, size), 0, False, Verdict.ARMING)
            programs.put(key, 0, True, guard)
            with suppress(KeeperError):  # an older keeper has no canary
                self._before = keeper.canary(fd, trials)[0]
        finally:
            os.close(fd)

    @property
    def missed(self) -> int:
        """How often the trials began to pass, as far as is known. The keeper makes them whether or
        not a service is running."""
        return self._before + self._since

    def look(self) -> str:
        """Which operations pass that must be refused, as text; empty when none does."""
        try:
            self._since, failing = self._keeper.try_canary()
        except KeeperError:
            return ""
        passed = [name for trial, name, _ in _TRIALS if failing & trial]
        return f"on a file of our own these are not refused: {', '.join(passed)}" if passed else ""
