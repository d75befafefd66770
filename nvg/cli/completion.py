"""`nvg completion`"""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script, to be evaluated by that shell.

    \b
    bash:  echo 'eval "$(nvg completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(nvg completion zsh)"' >> ~/.zshrc
    fish:  nvg completion fish > ~/.config/fish/completions/nvg.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "nvg", "_NVG_COMPLETE").source())
