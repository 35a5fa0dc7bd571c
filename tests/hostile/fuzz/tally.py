"""What came of the inputs, counted; and the inputs whose answers are wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_SHOWN = 20


@dataclass
class Tally:
    """`fields` counts how often each string and integer was tried, by `request.field`."""

    inputs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, code: str) -> None:
        self.inputs += 1
        self.codes[code] += 1

    def blame(self, kind: str, sent: object, answered: object) -> None:
        """`kind`: internal, 5xx, undocumented, unanswered, ended."""
        self.wrong[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _SHOWN:
            kept.append(f"{sent!r:.1500}\n      {answered!r:.600}")

    def join(self, other: Tally) -> None:
        self.inputs += other.inputs
        for mine, theirs in (
            (self.codes, other.codes),
            (self.fields, other.fields),
            (self.wrong, other.wrong),
        ):
            mine.update(theirs)
        for kind, found in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + found)[:_SHOWN]

    def __str__(self) -> str:
        kinds = ("internal", "5xx", "undocumented", "unanswered", "ended")
        lines = [f"inputs {self.inputs}"]
        lines += [f"{kind} {self.wrong[kind]}" for kind in kinds]
        if self.fields:
            least, times = min(self.fields.items(), key=lambda item: item[1])
            lines.append(f"fields {len(self.fields)}, each {times} times at least ({least})")
        lines.append("answers " + ", ".join(f"{c} {n}" for c, n in self.codes.most_common()))
        lines += [f"  {kind}: {text}" for kind, found in self.examples.items() for text in found]
        return "\n".join(lines)
