"""docs/integrity.md has the tables of the program. After a change: python THIS FILE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sealsvc.integrity.profiles import CHECKSUMS, FIELDS, KEYS, REFTAGS, built_in

PAGE = Path(__file__).parents[2] / "docs/integrity.md"


def rows(name: str) -> Iterator[tuple[str, ...]]:
    match name:
        case "keys":
            yield from ((f"`{key}`", allowed) for key, allowed in KEYS.items())
        case "fields":
            yield from ((f"`{field}`", kind.means) for field, kind in FIELDS.items())
        case "checksums":
            yield from ((f"`{n}`", str(row.bits), row.means) for n, row in CHECKSUMS.items())
        case "reftags":
            yield from ((f"`{n}`", row.means) for n, row in REFTAGS.items())
        case "profiles":
            for profile in built_in().values():
                size = str(profile.granularity or "stream")
                fields = ", ".join(f"{field.name} {field.width}" for field in profile.fields)
                yield f"`{profile.name}`", size, str(profile.width), fields, profile.checksum


def rendered(page: str) -> str:
    """With the rows below the header that follows each mark."""

    def table(found: re.Match[str]) -> str:
        lines = ["| " + " | ".join(row) + " |\n" for row in rows(found[1])]
        return found[0].removesuffix(found[2]) + "".join(lines)

    names = "keys|fields|checksums|reftags|profiles"
    return re.sub(rf"<!-- ({names}) -->\n\|.*\n\|.*\n((?:\|.*\n)*)", table, page)


def test_the_page_has_the_tables_of_the_program() -> None:
    assert PAGE.read_text() == rendered(PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
