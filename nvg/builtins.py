"""nvg's own samplers, tokenizers and models, registered through the hooks that plugins use."""

from nvg.hookspecs import Register, hookimpl


@hookimpl
def nvg_register_samplers(register: Register) -> None:
    register("greedy", "nvg.sampling.greedy:Greedy")
    register("temperature", "nvg.sampling.temperature:Temperature")
    register("topk", "nvg.sampling.topk:TopK")
    register("topp", "nvg.sampling.topp:TopP")
    register("minp", "nvg.sampling.minp:MinP")


@hookimpl
def nvg_register_tokenizers(register: Register) -> None:
    register("gpt2", "nvg.tokenizers.bpe:ByteLevelBPE")
    register("bytes", "nvg.tokenizers.bytes:BytesTokenizer")


@hookimpl
def nvg_register_models(register: Register) -> None:
    register("gpt2", "nvg.model.runner:GPT2Runner")
