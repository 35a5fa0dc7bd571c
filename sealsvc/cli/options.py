"""The options every command takes, before or behind the command's name, and what they set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from sealsvc.cli.parameters import TIMEOUT
from sealsvc.client import Client

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

# Shared by a context and its children, and filled during shell completion too: see _remember.
_META = "sealsvc.cli."

# How long a command waits for an answer that the service gives at once.
_PROMPT = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """`socket` None: SEALSVC_SOCKET or the default. `url`: the REST API instead. `timeout` None:
    the command's own."""

    socket: str | None = None
    url: str | None = None
    output: str = "human"
    color: str = "auto"
    timeout: float | None = None
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def json(self) -> bool:
        return self.output == "json"

    def connect(self, *, patient: bool = False) -> Client:
        """`patient`: the answer may rightly take long (a preparation, a recall that is waited
        for), so that only --timeout bounds it."""
        timeout = self.timeout or (None if patient else _PROMPT)
        if not self.url:
            return Client(self.socket, timeout)
        from sealsvc.client.http import RemoteClient, Tls  # and with it http.client and ssl

        return RemoteClient(self.url, timeout, Tls(self.cacert, self.cert, self.key))

    @classmethod
    def of(cls, ctx: click.Context) -> Settings:
        names = [field.name for field in fields(cls)]
        return cls(**{n: ctx.meta[_META + n] for n in names if _META + n in ctx.meta})


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # The group's options are processed first, so that what stands nearer to the command wins.
    if value is not None:
        ctx.meta[_META + str(param.name)] = value


_SHARED = (
    click.option(
        "--socket",
        metavar="PATH",
        help="Control socket of the service [env: SEALSVC_SOCKET].",
        type=click.Path(),
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "--url",
        metavar="URL",
        envvar="SEALSVC_URL",
        help="REST API to ask instead, with the token in SEALSVC_TOKEN [env: SEALSVC_URL].",
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "--cacert",
        metavar="FILE",
        envvar="SEALSVC_CACERT",
        help="Certificates that the API's may be signed by (the system's) [env: SEALSVC_CACERT].",
        type=click.Path(exists=True, dir_okay=False),
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "--cert",
        metavar="FILE",
        envvar="SEALSVC_CERT",
        help="Certificate to show to the API, instead of a token [env: SEALSVC_CERT].",
        type=click.Path(exists=True, dir_okay=False),
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "--key",
        metavar="FILE",
        envvar="SEALSVC_KEY",
        help="Key of --cert, where it is not in the same file [env: SEALSVC_KEY].",
        type=click.Path(exists=True, dir_okay=False),
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "-o",
        "--output",
        type=click.Choice(["human", "wide", "json"]),
        help="Output format (human); wide: whatever the terminal's width.",
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        help="When to use colour (auto).",
        expose_value=False,
        callback=_remember,
    ),
    click.option(
        "--timeout",
        type=TIMEOUT,
        help="Longest wait for the service's answer.",
        expose_value=False,
        callback=_remember,
    ),
)


def shared_options(function: F) -> F:
    for option in reversed(_SHARED):
        function = option(function)
    return function


def pass_settings(function: Callable[Concatenate[Settings, P], R]) -> Callable[P, R]:
    """Call a command with the Settings of its context as the first argument."""

    @functools.wraps(function)
    def with_settings(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(Settings.of(click.get_current_context()), *args, **kwargs)

    return with_settings
