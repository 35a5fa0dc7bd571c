"""What a person sees who waits: on a terminal's standard error alone, and gone when it is over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sealsvc.core.display import printable


def _console() -> Console:
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """For what does not tell how far it is."""
    if not sys.stderr.isatty():
        yield
        return
    with _console().status(printable(text)):
        yield


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps: the value is called with what was done at each."""
    if not sys.stderr.isatty():
        yield lambda done: None  # noqa: ARG005
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    told = TextColumn("{task.description}", markup=False)
    with Progress(*columns, told, console=_console(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, advance=1, description=printable(done))
