"""What is the same for every command: help, options, errors, completion."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import click
import pytest
from fake_daemon import ONE, TWO, FakeDaemon
from sealctl_process import Start

from sealsvc.cli.audit import DRIFT_FOUND
from sealsvc.cli.sealctl import COMMANDS, INTERRUPTED, main
from sealsvc.client import Client
from sealsvc.core.errors import TABLE, Refusal
from sealsvc.protocol.seals import List, SealPage
from sealsvc.protocol.system import Status


@pytest.mark.parametrize("command", [(), *((c.name,) for c in COMMANDS)])
def test_help_has_examples(sealctl: Start, command: tuple[str, ...]) -> None:
    status, out, err = sealctl(*command, "--help").result()
    assert (status, err) == (0, "")
    assert "Examples:\n    sealctl " in out


def test_every_option_is_explained() -> None:
    for command in COMMANDS:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help or isinstance(parameter.type, click.Choice), parameter.name


def test_version(sealctl: Start) -> None:
    assert sealctl("--version").result() == (0, "sealctl, version 0.1.0\n", "")


@pytest.mark.parametrize(
    "wrong",
    [
        ("nonsense",),
        ("hold", "f"),
        ("hold", "f", "--range", "1M", "--", "true"),
        ("hold", "f", "--prepare", "allocate,bake", "--", "true"),
        ("hold", "f", "--recall-signal", "NOSUCH", "--", "true"),
        ("hold", "f", "--kind", "KIND", "--", "true"),
        ("show", "xyz"),
        ("recall",),
        ("recall", "--all", "--pid", "3"),
        ("recall", "5f1e", "--all"),
        ("recall", "--range", "0:1", "--pid", "1"),
        ("ls", "--timeout", "0"),
        ("ls", "-o", "yaml"),
    ],
)
def test_usage_errors(daemon: FakeDaemon, sealctl: Start, wrong: tuple[str, ...]) -> None:
    status, out, err = sealctl(*wrong).result()
    assert (status, out) == (2, "")
    assert "Error: " in err


@pytest.mark.parametrize("code", TABLE)
def test_every_refusal_has_its_exit_status(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise Refusal(code, "no")

    monkeypatch.setattr(Client, "__init__", refuse)
    assert main(["status"]) == TABLE[code].exit
    # That of an absent service fits the installation: see below.
    advice = "Start it: sealsvc serve" if code == "service-unavailable" else TABLE[code].advice
    assert capsys.readouterr().err.startswith(f"sealctl: {code}: no\n  {advice}")


@pytest.mark.parametrize("form", ["human", "json"])
def test_refusals(daemon: FakeDaemon, sealctl: Start, form: str) -> None:
    running = sealctl("status", "-o", form)
    connection = daemon.accept()
    request, _ = connection.request(Status)
    connection.fail(request, "denied", "not you", details={"uid": 7})
    status, out, err = running.result()
    assert (status, out) == (3, "")
    if form == "json":
        told = json.loads(err)
        assert (told["reply"], told["code"], told["details"]) == ("failure", "denied", {"uid": 7})
    else:
        assert err == f"sealctl: denied: not you\n  {TABLE['denied'].advice}\n"


def test_no_service(sealctl: Start) -> None:
    status, _, err = sealctl("ls").result()
    assert status == 7
    assert "service-unavailable" in err


def test_silent_service(daemon: FakeDaemon, sealctl: Start) -> None:
    status, _, err = sealctl("--timeout", "200ms", "status").result()
    assert status == 7
    assert "no answer from" in err


def test_socket_option_wins(daemon: FakeDaemon, sealctl: Start) -> None:
    path = str(daemon.path)
    env = {"SEALSVC_SOCKET": "/nonexistent"}
    for arguments in (("--socket", path, "ls"), ("--socket", "/no", "ls", "--socket", path)):
        running = sealctl(*arguments, env_more=env)
        daemon.serve(List, SealPage(seals=[]))
        assert running.result()[0] == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(sealctl: Start, shell: str) -> None:
    status, out, err = sealctl("completion", shell).result()
    assert (status, err) == (0, "")
    assert "_SEALCTL_COMPLETE=" in out


def complete(words: str) -> dict[str, str]:
    number = str(len(words.split()) - 1 if not words.endswith(" ") else len(words.split()))
    return {"_SEALCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}


def ids(daemon: FakeDaemon, sealctl: Start, words: str, **more: str) -> str:
    """What is offered. It waits a second for the service, which on a slow machine may be too short:
    then it is asked again."""
    for _ in range(10):
        running = sealctl(env_more=complete(words) | more)
        with suppress(BrokenPipeError):
            daemon.serve(List, SealPage(seals=[ONE, TWO]))
        status, out, err = running.result()
        assert (status, err) == (0, "")
        if out.strip():
            break
    return out


def test_completion_of_ids(daemon: FakeDaemon, sealctl: Start) -> None:
    assert ids(daemon, sealctl, "sealctl show 5") == f"plain,{ONE.id}\n"


def test_completion_asks_the_named_socket(daemon: FakeDaemon, sealctl: Start) -> None:
    words = f"sealctl --socket {daemon.path} recall 6"
    assert ids(daemon, sealctl, words, SEALSVC_SOCKET="/nonexistent") == f"plain,{TWO.id}\n"


def test_completion_is_silent_without_service(sealctl: Start) -> None:
    assert sealctl(env_more=complete("sealctl show 5")).result() == (0, "\n", "")


def test_completion_of_word_lists(sealctl: Start) -> None:
    status, out, _ = sealctl(env_more=complete("sealctl hold f --prepare allocate,a")).result()
    assert status == 0
    assert out.splitlines() == ["plain,allocate,allocate", "plain,allocate,align"]


def test_everything_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sealctl.md").read_text()
    for command in COMMANDS:
        assert f"| `{command.name}" in page, command.name
    statuses = {row.exit for row in TABLE.values()} | {0, DRIFT_FOUND, INTERRUPTED}
    for status in statuses:
        assert f"\n| {status} | " in page, status
