"""The sampler `grammar`: a mask from llguidance over the candidates of each step."""

from dataclasses import dataclass

import numpy as np

from nvg_grammar.forms import check_form, read_form
from nvg_grammar.matchers import matcher_for


@dataclass(frozen=True)
class Grammar:
    """Text in a given form, by llguidance (github.com/guidance-ai/llguidance): tokens that can't lead to it are
    removed, and end-of-text stays where the text is whole. One of schema, regex, choice and lark is given; it is the
    chain's first stage.

    schema: a JSON Schema, as text or as @FILE
    regex: a regular expression for all of the text, in Rust's syntax; no look-around, no back-references
    choice: texts, of which one is written, separated by commas; a comma in one is written with a backslash before it
    lark: a grammar in llguidance's dialect of Lark, as text or as @FILE
    whitespace: whether JSON may have any space between its parts; else one space after each comma and colon
    """

    schema: str | None = None
    regex: str | None = None
    choice: str | None = None
    lark: str | None = None
    whitespace: bool = False

    may_remove_all = True
    """A row may hold no token that the form allows, where a stage before this one removed them."""

    def __post_init__(self):
        given = [name for name in ("schema", "regex", "choice", "lark") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"of the options schema, regex, choice and lark {' and '.join(given) or 'none'} "
                f"{'are' if given[1:] else 'is'} given; give one"
            )
        (kind,) = given
        # What a file holds is read once, so that equal specs are equal forms wherever they are sent.
        object.__setattr__(self, kind, read_form(kind, getattr(self, kind)))
        check_form(self)

    def start(self, request):
        matcher, num_tokens = matcher_for(self, request.tokenizer, request.vocab_size, request.eos_token_ids)
        return Guided(matcher, num_tokens, request)


_BIASES = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
).astype(np.float32)
"""For each byte of a mask what its eight tokens' logits are changed by: masks without branches."""


class Guided:
    """One sequence's place in the form."""

    def __init__(self, matcher, num_tokens, request):
        self._matcher = matcher
        self._mask = np.zeros((num_tokens + 31) // 32, np.uint32)  # a bit for each token that is allowed
        self._address, self._num_bytes = self._mask.ctypes.data, self._mask.nbytes
        self._bias = np.empty((self._num_bytes, 8), np.float32)
        self._vocab_size, self._min_tokens = request.vocab_size, request.params.min_tokens

    def apply(self, logits, token_ids, state):
        self._matcher.unsafe_compute_mask_ptr(self._address, self._num_bytes)
        if self._matcher.is_error():
            raise ValueError(f"the form can't go on from here: {_line(self._matcher.get_error())}")
        np.take(_BIASES, self._mask.view(np.uint8), axis=0, out=self._bias, mode="clip")  # unbuffered
        bias = self._bias.reshape(-1)
        all_ids = token_ids.size == token_ids[-1] + 1  # they ascend
        logits += bias[: logits.size] if all_ids else bias[token_ids]
        if logits.max() == -np.inf:
            num_allowed = int(np.count_nonzero(bias[: self._vocab_size] == 0))
            if not num_allowed:
                raise ValueError("the tokenizer has no token for what the form asks for here")
            raise ValueError(
                f"of the tokens that the form allows here ({num_allowed}) none is among the candidates that are left: "
                f"put grammar before what removes them in the chain{self._about_min_tokens(state)}"
            )

    def accept(self, token_id, logprob):
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"the form does not take token {token_id}: {_line(self._matcher.get_error())}")

    def _about_min_tokens(self, state):
        early = state.step < self._min_tokens and self._matcher.is_accepting()
        return f", or lower min_tokens ({self._min_tokens}): the text is whole" if early else ""


def _line(message):
    """The first line of an error of llguidance, which goes on with the parser's state."""
    return message.strip().partition("\n")[0]
