"""docs/errors.md is the error table. After a change: python tests/docs/test_errors_page.py"""

from __future__ import annotations

import errno
from pathlib import Path

from sealsvc.core.errors import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def render() -> str:
    lines = [
        "# Errors",
        "",
        "One table for the control socket, the REST API (problem+json) and sealctl.",
        "",
        "| code | means | what to do | errno | HTTP | sealctl exit | try again | RFC 8881 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in TABLE.values():
        name = {errno.EOPNOTSUPP: "EOPNOTSUPP"}.get(row.errno, errno.errorcode[row.errno])
        again = "yes" if row.retryable else "no"
        lines.append(
            f"| `{row.code}` | {row.title} | {row.advice} | {name} | {row.status} | {row.exit}"
            f" | {again} | {row.nfs or '-'} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == render()


if __name__ == "__main__":
    PAGE.write_text(render())
