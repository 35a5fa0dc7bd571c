"""What the doctor found on each kernel: docs/coverage/SERIES.json, a record for each set-up.

`python -m tests.lab.coverage` measures in the lab and writes them; coverage_page.py makes
docs/coverage.md of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from sealsvc.core.model import Conflict, Kind
from sealsvc.doctor.operations import CATALOGUE
from sealsvc.doctor.promise import risk_of
from sealsvc.doctor.report import Row
from sealsvc.doctor.verdict import Result
from tests.operations.table import ROOT

COVERAGE = ROOT / "docs" / "coverage"
FILESYSTEMS = ("xfs", "ext4")
SERIES = ("6.1", "6.12", "6.18", "7")


@dataclass(frozen=True)
class Setup:
    """The enforcers in use, and the seals that they are asked for. `newer`: from Linux 6.14 on, or
    before, is where the service would choose them (None: on both)."""

    use: tuple[str, ...]
    kind: Kind
    conflict: Conflict
    newer: bool | None
    dax: bool = False

    @property
    def name(self) -> str:
        return "+".join(self.use)

    def chosen_on(self, series: str) -> bool:
        gate = version_of(series) >= [6, 14]  # pre-content events
        return self.newer in (None, gate)


SETUPS = {
    setup.name: setup
    for setup in (
        Setup(("fanotify", "bpf"), Kind.SHARED, Conflict.WAIT, newer=True),
        Setup(("fanotify",), Kind.SHARED, Conflict.WAIT, newer=True),
        Setup(("bpf",), Kind.SHARED, Conflict.REFUSE, newer=None),
        Setup(("lease", "bpf"), Kind.EXCLUSIVE, Conflict.WAIT, newer=False),
        Setup(("lease",), Kind.EXCLUSIVE, Conflict.WAIT, newer=False),
        Setup(("pin",), Kind.SHARED, Conflict.WAIT, newer=True, dax=True),
    )
}

WORDS = {
    "waits": "it waits until the seal is returned",
    "refused:ERRNO": "it gets this error",
    "passes": "it goes on, and the sealed map stays as it is",
    "no-seal:ERROR": "with the file in this state no seal is granted (errors.md)",
    "risk:NAME": "it changes the sealed map: a risk that policy must accept for such a seal",
    "GAP": "it changes the sealed map, and no risk is named for that: the promise is broken",
    "n/a:ERRNO": "the kernel or the file system does not do it to an unsealed file either",
    "?": "not measured",
}
_PLAIN = {
    Result.WAITS: "waits",
    Result.PASSED: "passes",
    Result.REFUSED: "refused",
    Result.NOT_APPLICABLE: "n/a",
}


def word_of(row: Row) -> str:
    """One of WORDS."""
    if row.result is Result.NOT_COVERED:
        risk = risk_of(row)
        return f"risk:{risk}" if risk else "GAP"
    if row.result is Result.REFUSED and row.note.startswith("at grant: "):
        return row.note.replace("at grant: ", "no-seal:")
    plain = _PLAIN[row.result]
    return f"{plain}:{row.errno}" if row.errno and plain in ("refused", "n/a") else plain


def note_of(row: Row) -> str:
    """What the word does not say: of what went on or waited otherwise than it should."""
    return row.note if row.result in (Result.WAITS, Result.PASSED, Result.NOT_COVERED) else ""


def rows_of(filesystem: str) -> list[str]:
    """The doctor's rows there, in its order: those that do not disturb the whole file system."""
    return [
        name
        for name, operation in CATALOGUE.items()
        if operation.applies_to(filesystem) and not operation.disruptive
    ]


class Measured(msgspec.Struct):
    """A file system with one set-up: a word for each row that was measured, and `notes` of some.
    `seconds`: what that took. `date`: when the last row was measured."""

    kernel: str
    date: str
    seconds: float = 0.0
    rows: dict[str, str] = msgspec.field(default_factory=dict)
    notes: dict[str, str] = msgspec.field(default_factory=dict)

    def add(self, row: str, word: str, note: str) -> None:
        self.rows[row] = word
        self.notes.pop(row, None)
        if note:
            self.notes[row] = note


class Snapshot(msgspec.Struct):
    """Of one series: by set-up, by file system. `unavailable`: set-ups that this kernel cannot
    have, or that could not be measured, and why."""

    measured: dict[str, dict[str, Measured]] = msgspec.field(default_factory=dict)
    unavailable: dict[str, str] = msgspec.field(default_factory=dict)

    def of(self, setup: str, filesystem: str) -> Measured | None:
        return self.measured.get(setup, {}).get(filesystem)

    def missing(self, setup: str, filesystem: str) -> list[str]:
        """The doctor's rows that were not measured; none where the set-up cannot be had."""
        if setup in self.unavailable:
            return []
        found = self.of(setup, filesystem)
        words = found.rows if found else {}
        return [row for row in rows_of(filesystem) if words.get(row, "?") == "?"]

    def keep(self, setup: str, filesystem: str, new: Measured) -> None:
        """Beside what the same kernel had before; in the doctor's order."""
        kept = self.of(setup, filesystem)
        if kept is not None and kept.kernel == new.kernel:
            for row, word in kept.rows.items():
                if new.rows.get(row, "?") == "?":
                    new.add(row, word, kept.notes.get(row, ""))
            new.seconds += kept.seconds
        new.seconds = round(new.seconds)
        new.rows = {row: new.rows[row] for row in rows_of(filesystem) if row in new.rows}
        self.measured.setdefault(setup, {})[filesystem] = new
        self.unavailable.pop(setup, None)


def load(series: str) -> Snapshot:
    path = COVERAGE / f"{series}.json"
    return msgspec.json.decode(path.read_bytes(), type=Snapshot) if path.exists() else Snapshot()


def save(series: str, snapshot: Snapshot) -> None:
    snapshot.measured = {
        name: snapshot.measured[name] for name in SETUPS if name in snapshot.measured
    }
    text = msgspec.json.format(msgspec.json.encode(snapshot), indent=1)
    COVERAGE.mkdir(exist_ok=True)
    (COVERAGE / f"{series}.json").write_bytes(text + b"\n")


def version_of(series: str) -> list[int]:
    """Of a series, or of a kernel's release."""
    return [int(n) for n in re.findall(r"\d+", series)[:2]]


def kernels() -> dict[str, Snapshot]:
    """Debian's series, and other kernels that were measured, by their releases."""
    others = {path.stem for path in COVERAGE.glob("*.json")} - set(SERIES)
    names = sorted({*SERIES, *others}, key=lambda name: (version_of(name), name))
    return {series: load(series) for series in names}
