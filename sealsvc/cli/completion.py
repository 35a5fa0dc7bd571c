"""sealctl completion: the script a shell loads."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

EXAMPLES = """\b
Examples:
  sealctl completion bash > /usr/share/bash-completion/completions/sealctl
  eval "$(sealctl completion zsh)"
  sealctl completion fish > ~/.config/fish/completions/sealctl.fish
"""

VARIABLE = "_SEALCTL_COMPLETE"


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell. Seal ids are completed from the live service."""
    made = get_completion_class(shell)
    assert made is not None  # click knows these three
    click.echo(made(ctx.find_root().command, {}, "sealctl", VARIABLE).source())
