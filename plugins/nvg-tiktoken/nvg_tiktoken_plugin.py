"""What nvg imports to learn the name; tiktoken is imported with the tokenizer, when that is used."""

from nvg import hookimpl


@hookimpl
def nvg_register_tokenizers(register):
    register("tiktoken", "nvg_tiktoken:TiktokenTokenizer")
