"""`nvg tokenize`"""

from __future__ import annotations

import json

import click

from nvg.cli import options
from nvg.errors import ParameterError


@click.command()
@click.argument("text", required=False, type=options.TEXT)
@options.model
@options.tokenizer
@click.option(
    "--allow-special", is_flag=True, help="Take <|endoftext|> and its like in TEXT as the tokens that they name."
)
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def tokenize(text: str | None, model: str, tokenizer: str | None, allow_special: bool, output_format: str) -> None:
    """Show how TEXT (or stdin) splits into a model's tokens: a line for each, its id and its bytes."""
    from nvg.hub import resolve_model
    from nvg.plugins import registry
    from nvg.tokenizers.prompt import encode_whole

    if text is None:
        text = options.piped_stdin()
    if text is None:
        raise ParameterError("there is no text: give it as an argument or pipe it into stdin")
    with options.flags_in_errors():
        loaded = registry().tokenizers.load(tokenizer or "gpt2").from_dir(resolve_model(model))
    token_ids = encode_whole(loaded, text, allow_special=allow_special)
    if output_format == "json":
        pieces = [loaded.token_bytes(token_id).decode("utf-8", "backslashreplace") for token_id in token_ids]
        click.echo(json.dumps({"model": model, "token_ids": token_ids, "tokens": pieces}))
        return
    for token_id in token_ids:
        click.echo(f"{token_id:>7}  {_shown(loaded.token_bytes(token_id))}")
    click.echo(f"{len(token_ids)} tokens, {len(text)} characters", err=True)


def _shown(data: bytes) -> str:
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return str(data)
