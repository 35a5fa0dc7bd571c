"""Paths as the service wants them: absolute, with symbolic links left for it to refuse."""

from __future__ import annotations

import os

import click


def absolute(path: str) -> str:
    """`path` made absolute without resolving symbolic links.

    os.path.abspath would drop "link/.." and so name another file than the kernel would; here
    ".." is folded only behind something that is not a link. The service gets the rest as it is.
    """
    whole = "/"
    for part in os.path.join(os.getcwd(), path).split("/"):
        if part in ("", "."):
            continue
        if part == ".." and not os.path.islink(whole):
            whole = os.path.dirname(whole)
        else:
            whole = os.path.join(whole, part)
    return _spoken(whole)


def _spoken(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(
            f"{path!r} is not UTF-8, and the control protocol can name no other path"
        ) from None
    return path
