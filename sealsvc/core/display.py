"""Escapes text that others chose (paths, tags, names of processes) before people see it.

Characters that are not visible themselves could move the cursor, end a line, or (such as U+202E)
reverse the text beside them, so that one name reads as another. The dashboard has the same rule in
pages/dom.js.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with each control, format, private or unassigned character, and each byte that is no
    UTF-8, as an escape such as \\x1b or \\u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    octet = ord(character) - 0x10FF00  # a byte that is not UTF-8, as protocol/codec.py encodes it
    if octet >= 0x80:
        return f"\\x{octet:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()
