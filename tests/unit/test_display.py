from __future__ import annotations

import pytest

from sealsvc.core.display import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/daten-ä-日本", "/srv/daten-ä-日本"),
        ("a b", "a b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\x1b[2J\n\x9b", "\\x1b[2J\\n\\x9b"),
        ("\u200b\ufeff\u00a0\u2028", "\\u200b\\ufeff\\xa0\\u2028"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_visible_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
