"""How text that others chose (paths, tags, names of processes) is shown to people.

Characters that are not visible by themselves could move the cursor, end a line, or (U+202E and its
kin) reverse what stands beside them, so that one name reads as another. They are shown escaped. The
dashboard has the same rule in pages/dom.js.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with each control, format, private or unassigned character, and each byte that is no
    UTF-8, as an escape such as \\x1b or \\u202e."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
