"""TCMU: a SCSI disk of LIO whose commands sealsvc-tcmu answers (native/exports/tcmu), as a LUN of
tcm_loop or, with loopback=no, for whatever fabric it is linked to."""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Served
from sealsvc.exports.programs import is_claimed, program
from sealsvc.exports.runtime import Record
from sealsvc.exports.stats import read_stats

_PROGRAM = "sealsvc-tcmu"
_TARGET = Path("/sys/kernel/config/target")
_FAIL_COMMANDS = "2"  # tcmu_reset_ring_store(): what is outstanding ends with CHECK CONDITION
_SERIALS = uuid.UUID("5c1f0f0e-9d0c-4c3a-9e57-3f0b6f6f7c11")


class Tcmu(Served):
    type: ClassVar[str] = "tcmu"
    summary: ClassVar[str] = (
        "SCSI disk of the kernel's target, for iSCSI, FC, vhost-scsi or locally"
    )
    options: ClassVar[dict[str, str]] = {
        "loopback": "yes: a local disk by tcm_loop; no: the LUN is linked by others (yes)",
        "block_size": "512 or 4096 (512)",
        "hba": "number of LIO's directory user_N (7)",
        "threads": "commands that are carried out at a time (4)",
    }
    # TCMU_TIME_OUT of target_core_user.c, and SCSI's own for a disk, are both 30 s.
    initiator_timeout: ClassVar[float] = 30.0
    initiator: ClassVar[str] = "SCSI commands and TCMU's cmd_time_out (30 s)"

    @classmethod
    def missing(cls) -> str:
        if not program(_PROGRAM):
            return f"{_PROGRAM} is not installed"
        if not Path("/sys/module/target_core_user").exists():
            return "target_core_user is not loaded (modprobe target_core_user)"
        if not (_TARGET / "core").exists():
            return "configfs is not mounted (mount -t configfs none /sys/kernel/config)"
        return ""

    def check(self) -> None:
        options = self.spec.options
        if options.get("loopback", "yes") not in ("yes", "no"):
            raise Refusal("bad-request", f"loopback={options['loopback']}: yes or no")
        if options.get("block_size", "512") not in ("512", "4096"):
            raise Refusal("bad-request", f"block_size={options['block_size']}: 512 or 4096")
        for option in ("hba", "threads"):
            value = options.get(option, "1")
            if not (value.isdecimal() and int(value) <= 64 and (option == "hba" or int(value))):
                raise Refusal("bad-request", f"{option}={value}: a number up to 64")
        if self._has_lun and not Path("/sys/module/tcm_loop").exists():
            raise Refusal("export-failed", "tcm_loop is not loaded (modprobe tcm_loop)")

    @property
    def _has_lun(self) -> bool:
        return self.spec.options.get("loopback", "yes") == "yes"

    @property
    def _hba(self) -> str:
        return self.spec.options.get("hba", "7")

    @property
    def _core(self) -> Path:
        return _TARGET / "core" / f"user_{self._hba}" / self.spec.name

    def _wwn(self, what: str) -> str:
        """NAA type 5, of the export's name; `what` tells target and initiator apart."""
        digest = hashlib.sha256(f"{what} {self.spec.name}".encode()).hexdigest()
        return f"naa.5001405{digest[:9]}"

    @property
    def _portal(self) -> Path:
        return _TARGET / "loopback" / self._wwn("target") / "tpgt_1"

    @property
    def _lun(self) -> Path:
        return self._portal / "lun" / "lun_0"

    def program(self, recover: bool) -> tuple[list[str], dict[str, str]]:
        if not (recover and self._core.exists()):
            self._make_core()
        command = [program(_PROGRAM), "--subtype", "sealed"]
        command += ["--only", f"{self._hba}/{self.spec.name}", "--notes", os.fspath(self._notes)]
        if threads := self.spec.options.get("threads"):
            command += ["--threads", threads]
        return command, self.core_environment()

    @property
    def _notes(self) -> Path:
        return self.runtime.directory / f"{self.spec.name}.tcmu"

    def _make_core(self) -> None:
        block = int(self.spec.options.get("block_size", "512"))
        size = os.stat(self.spec.file).st_size // block * block
        # The name that others see has no path, which may have a ':' or a ',' or be too long.
        words = (
            f"dev_config=sealed/{self.spec.name}", f"dev_size={size}", f"hw_block_size={block}",
            "nl_reply_supported=-1",
        )  # fmt: skip
        try:
            self._core.mkdir(parents=True)
            (self._core / "control").write_text(",".join(words))
            serial = uuid.uuid5(_SERIALS, self.spec.name)
            (self._core / "wwn" / "vpd_unit_serial").write_text(str(serial))
            (self._core / "enable").write_text("1")
        except OSError as error:
            self._remove_core()
            raise Refusal("export-failed", f"{self._core}: {error.strerror}") from error

    def ready(self, record: Record) -> str:
        stats = read_stats(self.runtime.stats(self.spec.name))
        if stats is None or stats.pid != record.pid or stats.state == "starting":
            return ""
        if not self._has_lun:
            return os.fspath(self._core)
        if not (self._lun / self.spec.name).exists():
            self._make_lun()
        return self._node()

    def _make_lun(self) -> None:
        try:
            self._lun.mkdir(parents=True)
            (self._portal / "nexus").write_text(self._wwn("initiator"))
            (self._lun / self.spec.name).symlink_to(self._core)
        except OSError as error:
            raise Refusal("export-failed", f"{self._lun}: {error.strerror}") from error

    def _scsi(self) -> Path | None:
        try:
            host, channel, target = (self._portal / "address").read_text().strip().split(":")
        except (OSError, ValueError):
            return None
        return Path(f"/sys/bus/scsi/devices/{host}:{channel}:{target}:0")

    def _node(self) -> str:
        """The LUN's block device; "" until the kernel has found it."""
        scsi = self._scsi()
        names = sorted((scsi / "block").glob("*")) if scsi else []
        return f"/dev/{names[0].name}" if names and names[0].name else ""

    def delete(self, record: Record) -> None:  # noqa: ARG002
        """Nobody answers any more: what is outstanding fails, and nothing new is asked."""
        if (scsi := self._scsi()) is not None:
            for cache in scsi.glob("scsi_disk/*/cache_type"):
                with suppress(OSError):  # sd_shutdown() would wait for a flush, 30 s
                    cache.write_text("temporary write through")
        with suppress(OSError):
            (self._core / "action" / "reset_ring").write_text(_FAIL_COMMANDS)
        with suppress(FileNotFoundError):
            (self._lun / self.spec.name).unlink()
        for directory in (self._lun, self._portal, self._portal.parent):
            with suppress(FileNotFoundError):
                directory.rmdir()
        self._remove_core()
        with suppress(FileNotFoundError):
            (self._notes / f"{self._hba}.{self.spec.name}").unlink()
            self._notes.rmdir()

    def _remove_core(self) -> None:
        with suppress(FileNotFoundError):
            self._core.rmdir()
        with suppress(OSError):  # others' devices may be there
            self._core.parent.rmdir()

    def status(self, record: Record) -> dict[str, Any]:  # noqa: ARG002
        return {"backstore": os.fspath(self._core), "lun": os.fspath(self._lun)}

    def in_use(self, record: Record) -> str:
        return is_claimed(record.device) if self._has_lun and record.device else ""
