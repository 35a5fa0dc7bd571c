"""Types of command line arguments that click does not have."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

import click
from click.shell_completion import CompletionItem

from sealsvc.cli.units import parse_duration, parse_range


class Parsed(click.ParamType[object]):
    """A value that one of our parsers reads; its ValueError is the usage message."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value  # a default, already of the right type
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Words(click.ParamType[tuple[str, ...]]):
    """A comma-separated list of known words; becomes a tuple. Meant for multiple=True."""

    name = "words"

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return "[" + ",".join(self.words) + "]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        chosen = tuple(word.strip() for word in value.split(","))
        for word in chosen:
            if word not in self.words:
                self.fail(f"{word!r} is not one of {', '.join(self.words)}", param, ctx)
        return chosen

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(done + comma + w) for w in self.words if w.startswith(last)]


def choice(words: Iterable[StrEnum]) -> click.Choice[str]:
    """By value: click would offer the names of an enumeration's members."""
    return click.Choice([word.value for word in words])


def parse_signal(text: str) -> signal.Signals:
    """ "TERM", "SIGTERM" or "15"."""
    try:
        if text.isdecimal():
            return signal.Signals(int(text))
        return signal.Signals["SIG" + text.upper().removeprefix("SIG")]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a signal (such as TERM, USR1 or 15)") from None


def parse_timeout(text: str) -> float:
    if (seconds := parse_duration(text)) == 0:
        raise ValueError("a timeout of 0 waits for nothing; leave the option out to wait on")
    return seconds


def parse_address(text: str) -> int:
    """As /proc/PID/maps and %p write it: hexadecimal, with or without 0x."""
    try:
        address = int(text, 16)
    except ValueError:
        address = 0
    if not 0 < address < 2**62:
        raise ValueError(f"{text!r} is not an address (such as 7f0000200000)")
    return address


ADDRESS = Parsed("ADDRESS", parse_address)
RANGE = Parsed("OFFSET:LENGTH", parse_range)
DURATION = Parsed("DURATION", parse_duration)
TIMEOUT = Parsed("DURATION", parse_timeout)
SIGNAL = Parsed("SIGNAL", parse_signal)
