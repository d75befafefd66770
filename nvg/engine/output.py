"""From a row of logits to a token, to its text, and to a sequence's end."""

from __future__ import annotations

from nvg.engine.sequence import ChoiceSequence
from nvg.engine.stats import EngineStats
from nvg.errors import EngineError
from nvg.model.contract import Float32
from nvg.params import FinishReason
from nvg.sampling.chain import Chain
from nvg.sampling.compiled import passes_of
from nvg.sampling.contract import SamplerRequest
from nvg.sampling.logprobs import token_logprobs
from nvg.sampling.recorder import Recorder
from nvg.tokenizers.contract import Tokenizer


def draw(
    sequence: ChoiceSequence, row: Float32, tokenizer: Tokenizer, stats: EngineStats
) -> tuple[str, FinishReason | None]:
    """Draw the sequence's next token from its logits (V,), which are overwritten; what samplers take goes to `stats`.

    Returns the text that can be shown now, and why the sequence ends, if it does. Raises NvgError, which ends this
    sequence alone.
    """
    params, ending = sequence.request.params, sequence.request.ending
    num_ids = min(len(row), tokenizer.vocab_size)  # ids beyond the tokenizer's have no text
    if sequence.chain is None:
        sequence.chain = _chain(sequence, num_ids, tokenizer, stats)
    row = row[:num_ids]
    output = sequence.output_token_ids
    banned = sorted(ending) if len(output) < params.min_tokens else ()
    raw = None if sequence.logprobs is None else row.copy()
    token_id, _ = sequence.chain.sample(row, sequence.prompt_token_ids, output, banned=banned)
    if sequence.explanations is not None:
        assert sequence.chain.recorder is not None
        sequence.explanations.append(sequence.chain.recorder.explain(token_id))
    if raw is not None:
        assert sequence.logprobs is not None
        sequence.logprobs.append(token_logprobs(raw, token_id, params.logprobs or 0))
    return take(sequence, token_id)


def take(sequence: ChoiceSequence, token_id: int) -> tuple[str, FinishReason | None]:
    """Add a token; the text that can be shown now, and why the sequence ends, if it does."""
    sequence.append(token_id)
    if token_id in sequence.request.ending:
        return sequence.text.finish(), "stop"
    text = sequence.text.push(token_id)
    if sequence.text.stopped:
        return text, "stop"
    if sequence.is_full:
        text += sequence.text.finish()  # which may find that a held back text was a stop string
        return text, "stop" if sequence.text.stopped else "length"
    return text, None


def add_prompt_logprobs(sequence: ChoiceSequence, first: int, rows: Float32, num_ids: int) -> None:
    """Report the prompt's tokens that follow positions `first`, ..., whose logits `rows` (n, V) are.

    Raises EngineError if the model gave NaN or infinity.
    """
    request = sequence.request
    assert request.prompt_logprobs is not None
    prompt = request.prompt_token_ids
    for position, row in enumerate(rows[:, :num_ids], first + 1):
        if len(request.prompt_logprobs) == position < len(prompt):  # what was preempted comes again
            one = token_logprobs(row, prompt[position], request.params.prompt_logprobs or 0)
            if not one.logprob <= 0:
                raise EngineError(f"the model left NaN at prompt token {position}; its weights may be damaged")
            request.prompt_logprobs.append(one)


def _chain(sequence: ChoiceSequence, num_ids: int, tokenizer: Tokenizer, stats: EngineStats) -> Chain:
    request = sequence.request
    told = SamplerRequest(
        tokenizer=tokenizer,
        vocab_size=num_ids,
        eos_token_ids=tuple(tokenizer.eos_token_ids),
        prompt_token_ids=sequence.prompt_token_ids,
        params=request.params,
    )
    recorder = Recorder() if request.params.explain else None
    chain = Chain(request.stages, told, request.seed, sequence.index, times=stats.stages, recorder=recorder)
    if recorder is None and sequence.logprobs is None and len(sequence.pair) == 1:
        sequence.passes = passes_of(request.stages)
    return chain
