"""Both forms of output: the message itself as JSON, or a table for people."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.text import Text

from sealsvc.cli.options import Settings
from sealsvc.core.display import printable
from sealsvc.core.model import State

# A pipe has no width; cutting rows there would break `sealctl ls | grep`.
_UNBOUNDED = 100_000

STATE_STYLES = {
    State.GRANTED: "cyan",
    State.ACTIVE: "green",
    State.RECALLED: "yellow",
    State.FENCING: "bold yellow",
    State.FENCE_FAILED: "bold red",
    State.LOST: "bold red",
    State.REFUSED: "red",
}


def note(message: str) -> None:
    """A line for people beside the output proper."""
    click.echo(f"sealctl: {printable(message)}", err=True)


class WholeConsole(Console):
    """Lines that are longer than the terminal is wide are wrapped by the terminal: a path or a
    command that is selected there has no line break inside."""

    def print(self, *objects: Any, soft_wrap: bool | None = True, **how: Any) -> None:
        super().print(*objects, soft_wrap=soft_wrap, **how)


def console(settings: Settings) -> Console:
    forced = {"always": True, "never": False}.get(settings.color)
    # Markup, highlighting and emoji codes would misread paths such as "/data/[bold]:bug:".
    made = WholeConsole(
        force_terminal=forced,
        no_color=True if forced is False else None,
        markup=False,
        highlight=False,
        emoji=False,
    )
    if settings.output == "wide" or not sys.stdout.isatty():
        made.width = _UNBOUNDED
    return made


def is_terminal(console: Console) -> bool:
    """Rather than a pipe, or whatever `-o wide` writes to."""
    return console.width < _UNBOUNDED


def json_line(value: object) -> None:
    click.echo(msgspec.json.encode(value))


def emit(settings: Settings, value: object, human: Callable[[Console], None]) -> None:
    if settings.json:
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
    else:
        human(console(settings))


def fields(rows: Iterable[tuple[str, str | Text]]) -> Text:
    """The fields of one thing, one a line."""
    named = list(rows)
    width = max((len(name) for name, _ in named), default=0)
    lines = (
        Text.assemble((f"{name:<{width}}", "bold"), "  ", _plain(value)) for name, value in named
    )
    return Text("\n").join(lines)


def _plain(value: str | Text) -> str | Text:
    return value if isinstance(value, Text) else printable(value)


@functools.cache
def state_text(state: State) -> Text:
    return Text(state.value, style=STATE_STYLES.get(state, ""))
