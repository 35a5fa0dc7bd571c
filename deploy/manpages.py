"""The man pages, of what the programs say of themselves: `python deploy/manpages.py` writes them.

sealctl(1) is made of the commands' help, sealsvc.toml(5) of the example's comments, sealsvc(8) and
sealsvc-api(8) of their options and the text here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from sealsvc import __version__
from sealsvc.cli.sealctl import sealctl
from sealsvc.cli.service import main as sealsvc

DEPLOY = Path(__file__).parent
MAN = DEPLOY / "man"


def _text(text: str) -> str:
    """roff of plain text."""
    lines = []
    for line in text.replace("\\", "\\e").replace("-", "\\-").splitlines():
        lines.append("\\&" + line if line.startswith((".", "'")) else line)
    return "\n".join(lines)


def _page(name: str, section: int, summary: str, *parts: str) -> str:
    head = f'.TH {name.upper()} {section} "" "sealsvc {__version__}"\n'
    return head + f".SH NAME\n{_text(name)} \\- {summary}\n" + "\n".join(parts) + "\n"


def _section(title: str, *paragraphs: str) -> str:
    return f".SH {title}\n" + "\n.PP\n".join(paragraphs)


def _example(text: str) -> str:
    return f".EX\n{_text(textwrap.dedent(text).strip())}\n.EE"


def _options(command: click.Command, context: click.Context) -> str:
    records = [
        record
        for option in command.params
        if isinstance(option, click.Option) and (record := option.get_help_record(context))
    ]
    # Not command.get_params(): its names of the help option depend on who asked first.
    records.append(("-h, --help", "Show this message and exit."))
    return "\n".join(f".TP\n.B {_text(names)}\n{_text(told)}" for names, told in records)


def _epilog(command: click.Command) -> str:
    """The examples of a command's help."""
    found = re.search(r"Examples?:\n(.*?)(?:\n\n|\Z)", command.epilog or "", re.S)
    return textwrap.dedent(found[1]).strip() if found else ""


def examples(name: str) -> list[str]:
    """The example lines of a command of sealctl, as they stand in its help and its page."""
    return _epilog(sealctl.commands[name]).splitlines()


def _command(program: str, name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"{program} {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f".SS {_text(f'{program} {name} {usage}')}"]
    described = [
        " ".join(paragraph.replace("\b", "").split())
        for paragraph in (command.help or "").split("\n\n")
        if "Example" not in paragraph
    ]
    parts.append("\n.PP\n".join(_text(paragraph) for paragraph in described))
    parts.append(_options(command, context))
    if found := _epilog(command):
        parts.append(".PP\n" + _example(found))
    return "\n".join(part for part in parts if part)


EXIT = """0 done, 1 failure, 2 usage, 3 denied, 4 not found, 5 unsuitable file, 6 conflict (try
again), 7 service unavailable, 8 drift found; that of hold is its command's."""
ENVIRONMENT = """.TP
.B SEALSVC_SOCKET
The control socket (/run/sealsvc/control.sock).
.TP
.B SEALSVC_URL, SEALSVC_TOKEN
The REST API to ask instead, and the bearer token to show it."""


def _each(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Commands of groups too, by both words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", found) for sub, found in _each(command))
        else:
            yield name, command


def sealctl_page() -> str:
    commands = [_command("sealctl", name, command) for name, command in _each(sealctl)]
    return _page(
        "sealctl",
        1,
        "hold, watch and recall extent-map seals",
        _section(
            "SYNOPSIS", ".B sealctl\n[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIARGUMENT\\fR]..."
        ),
        _section("COMMANDS") + "\n".join(commands),
        _section("EXIT STATUS", _text(EXIT)),
        _section("ENVIRONMENT") + ENVIRONMENT,
        _section("SEE ALSO", ".BR sealsvc (8),\n.BR sealsvc.toml (5)"),
    )


def sealsvc_page() -> str:
    context = click.Context(sealsvc, info_name="sealsvc")
    commands = [
        _command("sealsvc", name, command)
        for name in sealsvc.list_commands(context)
        if (command := sealsvc.get_command(context, name))
    ]
    return _page(
        "sealsvc",
        8,
        "the service that keeps extent maps sealed",
        _section("SYNOPSIS", ".B sealsvc\n\\fICOMMAND\\fR [\\fIOPTION\\fR]..."),
        _section(
            "DESCRIPTION",
            _text(
                "sealsvc grants revocable seals on the extent maps of files. While one is held,\n"
                "the map from file offset to physical block of its range does not change: whoever\n"
                "tries waits while the holder is asked to give the seal back, or is refused."
            ),
            _text(
                "It fails closed: killed or stopped, it leaves every seal in force. A process,\n"
                "sealsvc-keeper, goes on enforcing; the next service takes the seals over."
            ),
        ),
        _section("COMMANDS") + "\n".join(commands),
        _section("SIGNALS", "SIGHUP has [policy] of the configuration read again."),
        _section(
            "FILES",
            "/etc/sealsvc/sealsvc.toml, /run/sealsvc/control.sock, /var/lib/sealsvc",
        ),
        _section("SEE ALSO", ".BR sealctl (1),\n.BR sealsvc.toml (5),\n.BR sealsvc\\-api (8)"),
    )


def api_page() -> str:
    from sealsvc_api.serve import parser

    rows = []
    for action in parser()._actions:
        names = ", ".join(action.option_strings)
        told = (action.help or "") % {"default": action.default, "prog": "sealsvc-api"}
        rows.append(f".TP\n.B {_text(names)}\n{_text(told)}")
    return _page(
        "sealsvc-api",
        8,
        "the REST API and the dashboard of sealsvc",
        _section("SYNOPSIS", ".B sealsvc\\-api\n[\\fIOPTION\\fR]..."),
        _section(
            "DESCRIPTION",
            _text(
                "An unprivileged client of the control socket. Its user must be one of\n"
                "policy.operators of sealsvc.toml. Who may ask it for what stands in the\n"
                "principals file; without one, everybody is refused."
            ),
        ),
        _section("OPTIONS") + "\n".join(rows),
        _section(
            "ENVIRONMENT",
            ".TP\n.B OTEL_EXPORTER_OTLP_ENDPOINT\n"
            + _text(
                "Traces are sent to this collector, by OTLP over HTTP; the other variables of\n"
                "OpenTelemetry are heeded, too. It takes the extra sealsvc[trace], which the\n"
                "Debian package has, and a network, which the unit has not: docs/deploy.md has\n"
                "the drop-in."
            ),
        ),
        _section("EXAMPLES", _example("sealsvc-api --new-token")),
        _section("SEE ALSO", ".BR sealsvc (8)"),
    )


def toml_page() -> str:
    parts, comment = [], []
    for line in (DEPLOY / "sealsvc.toml").read_text().splitlines()[2:]:
        if line.startswith("# "):
            comment.append(line[2:])
        elif line.startswith("["):
            parts.append(f".SS {_text(line)}")
        elif line:
            parts.append(f".TP\n.B {_text(line)}\n{_text(' '.join(comment))}")
            comment = []
    return _page(
        "sealsvc.toml",
        5,
        "configuration of sealsvc",
        _section(
            "DESCRIPTION",
            _text("TOML. Every key is shown with its default; an unknown key is an error."),
        ),
        _section("KEYS") + "\n".join(parts),
        _section("SEE ALSO", ".BR sealsvc (8)"),
    )


PAGES = {
    "sealctl.1": sealctl_page,
    "sealsvc.8": sealsvc_page,
    "sealsvc-api.8": api_page,
    "sealsvc.toml.5": toml_page,
}

if __name__ == "__main__":
    MAN.mkdir(exist_ok=True)
    for name, render in PAGES.items():
        (MAN / name).write_text(render())
