"""nvg's own samplers, tokenizers and models, registered through the hooks that plugins use."""

from nvg.hookspecs import Register, hookimpl


@hookimpl
def nvg_register_samplers(register: Register) -> None:
    register("penalties", "nvg.sampling.penalties:Penalties")
    register("dry", "nvg.sampling.dry:DRY")
    register("norepeatngram", "nvg.sampling.norepeatngram:NoRepeatNGram")
    register("logitbias", "nvg.sampling.logitbias:LogitBias")
    register("banned", "nvg.sampling.banned:Banned")
    register("minlength", "nvg.sampling.minlength:MinLength")
    register("forcedprefix", "nvg.sampling.forcedprefix:ForcedPrefix")
    register("greedy", "nvg.sampling.greedy:Greedy")
    register("temperature", "nvg.sampling.temperature:Temperature")
    register("dyntemp", "nvg.sampling.dyntemp:DynTemp")
    register("topk", "nvg.sampling.topk:TopK")
    register("topp", "nvg.sampling.topp:TopP")
    register("minp", "nvg.sampling.minp:MinP")
    register("topa", "nvg.sampling.topa:TopA")
    register("topnsigma", "nvg.sampling.topnsigma:TopNSigma")
    register("typical", "nvg.sampling.typical:Typical")
    register("tailfree", "nvg.sampling.tailfree:TailFree")
    register("epsilon", "nvg.sampling.epsilon:Epsilon")
    register("eta", "nvg.sampling.eta:Eta")
    register("xtc", "nvg.sampling.xtc:XTC")
    register("mirostat", "nvg.sampling.mirostat:Mirostat")
    register("mirostat2", "nvg.sampling.mirostat2:Mirostat2")


@hookimpl
def nvg_register_tokenizers(register: Register) -> None:
    register("gpt2", "nvg.tokenizers.bpe:ByteLevelBPE")
    register("bytes", "nvg.tokenizers.bytes:BytesTokenizer")


@hookimpl
def nvg_register_models(register: Register) -> None:
    register("gpt2", "nvg.model.runner:GPT2Runner")
