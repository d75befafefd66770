"""From token ids to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from nvg.tokenizers.checks import joined_surrogates
from nvg.tokenizers.contract import Tokenizer


class TextStream:
    """The text of one growing sequence of tokens, cut where the earliest stop string begins.

    All that `push` and `finish` return, joined, is `tokenizer.decode` of all ids up to the first place where one of
    the strings in `stop` begins. A UTF-8 character is shown when it is whole, and text that may become (a part of) a
    stop string is held back until it is clear that it doesn't. A stop string inside of a longer one's beginning waits
    until that one is ruled out, so that the cut doesn't depend on how the text is divided into tokens. O(total).

    End-of-text and stop ids are not shown: don't push them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """`stop`: strings that are not empty. Raises ParameterError for a lone surrogate in one of them."""
        self.stopped = False
        """Whether a stop string was found; more tokens can't change the text."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = _StopAutomaton([joined_surrogates(string) for string in stop])
        self._state = 0
        self._num_decoded = 0  # characters
        self._num_shown = 0
        self._cut: int | None = None  # where the earliest stop string found so far begins
        self._shown: list[str] = []

    @property
    def text(self) -> str:
        """The whole text shown so far."""
        self._shown = ["".join(self._shown)]
        return self._shown[0]

    def push(self, token_id: int) -> str:
        """Take the next token; the text that may be shown now, "" after a stop string was found.

        Raises ParameterError for an id outside the vocabulary.
        """
        return self._advance(self._decoder.decode(self._tokenizer.token_bytes(token_id)), ends=False)

    def finish(self) -> str:
        """No more tokens come: the text that was held back, up to a stop string if there is one in it."""
        return self._advance(self._decoder.decode(b"", final=True), ends=True)

    def _advance(self, decoded: str, *, ends: bool) -> str:
        """Follow the decoded text; what of it, and of the text held back before, may be shown now."""
        if self.stopped:
            return ""
        stops, state, position = self._stops, self._state, self._num_decoded
        for char in decoded:
            state = stops.next_state(state, char)
            position += 1
            length = stops.match_length[state]
            if length and (self._cut is None or position - length < self._cut):
                self._cut = position - length
            if self._cut is not None and self._cut <= position - stops.depth[state]:
                break  # no stop string that begins still earlier is under way
        held_from = position - stops.depth[state]
        if self._cut is not None and (ends or self._cut <= held_from):
            self.stopped = True
            end = self._cut
        else:
            end = position if ends else held_from
        num_held = self._num_decoded - self._num_shown
        held = stops.string[self._state][: min(num_held, end - self._num_shown)]
        new = held + decoded[: max(0, end - self._num_decoded)]
        self._state, self._num_decoded, self._num_shown = (0 if ends else state), position, end
        self._shown.append(new)
        return new


class _StopAutomaton:
    """Finds any of several strings in one pass (Aho and Corasick 1975, doi:10.1145/360825.360855).

    A state is the longest beginning of a string that the text ends with; 0 is the empty one.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._fallback = [0]  # state of the longest proper suffix
        self.string = [""]
        """A string that begins with each state."""
        self.depth = [0]
        """Characters of each state."""
        self.match_length = [0]
        """Characters of the longest string that ends here; 0 for none."""
        for string in strings:
            self._insert(string)
        self._link()

    def _insert(self, string: str) -> None:
        state = 0
        for depth, char in enumerate(string, 1):
            if char not in self._children[state]:
                self._children[state][char] = len(self.depth)
                self._children.append({})
                self._fallback.append(0)
                self.string.append(string)
                self.depth.append(depth)
                self.match_length.append(0)
            state = self._children[state][char]
        self.match_length[state] = len(string)

    def _link(self) -> None:
        """Set the fallbacks, the shorter states' first."""
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self._children[state].items():
                self._fallback[child] = self.next_state(self._fallback[state], char)
                queue.append(child)
            self.match_length[state] = self.match_length[state] or self.match_length[self._fallback[state]]

    def next_state(self, state: int, char: str) -> int:
        """The state after one more character; O(1) on average over a text."""
        while state and char not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(char, 0)
