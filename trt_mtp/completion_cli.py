"""The `completion` command."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for bash, zsh or fish.

    Load it from your shell's startup file, with eval "$(trt-mtp completion bash)" in ~/.bashrc or
    the same for zsh in ~/.zshrc, or write it to fish's completions directory.

    Example: trt-mtp completion fish > ~/.config/fish/completions/trt-mtp.fish
    """
    from click.shell_completion import get_completion_class

    from trt_mtp.cli import PROGRAM, cli

    found = get_completion_class(shell)
    assert found is not None
    variable = f"_{PROGRAM}_COMPLETE".replace("-", "_").upper()  # which click itself looks at
    click.echo(found(cli, {}, PROGRAM, variable).source())
