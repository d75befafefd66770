"""What nvg imports to learn the name; tokenizers is imported with the tokenizer, when that is used."""

from nvg import hookimpl


@hookimpl
def nvg_register_tokenizers(register):
    register("hf", "nvg_hf_tokenizers:HFTokenizer")
