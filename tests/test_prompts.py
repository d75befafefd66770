"""What can be given as a prompt: all of it is checked before any work."""

import array

import numpy as np
import pytest
from fakes import LetterTokenizer, TableRunner, cycle

from nvg import LLM, EngineConfig, SamplingParams
from nvg.errors import ParameterError
from nvg.prompts import pair, text_or_ids


@pytest.fixture(scope="module")
def llm():
    with LLM.from_components(EngineConfig(max_num_seqs=4), TableRunner(cycle(7)), LetterTokenizer(7)) as llm:
        yield llm


NO_PROMPT = "a prompt is a text or a list of token ids (integers)"
NO_PROMPTS = "it must be a text or a list of token ids (integers), or a list of such prompts"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, f"prompts is None; {NO_PROMPTS}"),
        (5, f"prompts is 5; {NO_PROMPTS}"),
        (b"abc", f"prompts is b'abc'; {NO_PROMPTS}"),
        ({"a": 1}, f"prompts is {{'a': 1}}; {NO_PROMPTS}"),
        ([[1.5]], f"token id 0 is 1.5; {NO_PROMPT}"),
        (["a", [1, 2.0]], f"prompt 1: token id 1 is 2.0; {NO_PROMPT}"),
        (["a", 5], f"prompt 1: 5 is no prompt; {NO_PROMPT}"),
        (["a", None], f"prompt 1: None is no prompt; {NO_PROMPT}"),
        (["a", b"b"], f"prompt 1: b'b' is no prompt; {NO_PROMPT}"),
        (["a", ["b", "c"]], f"prompt 1: token id 0 is 'b'; {NO_PROMPT}"),
        ([1, "a"], f"token id 1 is 'a'; {NO_PROMPT}"),
        ([1, True], f"token id 1 is True; {NO_PROMPT}"),
        ([1.5], f"1.5 is no prompt; {NO_PROMPT}"),
        (np.array([[1.5], [2]]), f"prompt 0: token id 0 is 1.5; {NO_PROMPT}"),
        (np.array([[[1]]]), f"token id 0 is [1]; {NO_PROMPT}"),
        ([1] * 3 + [list(range(10**5))], f"token id 3 is [0, 1, 2, 3, 4, 5, ...]; {NO_PROMPT}"),
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_named(prompts, message, llm):
    with pytest.raises(ParameterError) as error:
        llm.generate(prompts)
    assert str(error.value) == message
    assert not llm.stats.steps


@pytest.mark.parametrize("bad", [5, "greedy", [{}], [SamplingParams(), None]])
def test_params_of_another_kind_are_named(bad, llm):
    with pytest.raises(ParameterError, match=r"^params( \d)? is .*; it must be SamplingParams"):
        llm.generate(["a", "b"], bad)


def test_all_that_takes_a_prompt_checks_it(llm):
    for call in (llm.stream, llm.engine.add_request):
        with pytest.raises(ParameterError, match="b'ab' is no prompt"):
            call(b"ab")
    for ids in ([1.5], [True], b"ab", None, "ab"):
        with pytest.raises(ParameterError, match=r"token id"):
            llm.logits(ids)


def test_arrays_and_other_lists_of_ids():
    expected = [3, 1, 2]
    given = [expected, tuple(expected), np.array(expected, np.int32), array.array("q", expected), [*np.array(expected)]]
    for one in given:
        assert text_or_ids(one) == expected
        assert [text_or_ids(prompt) for prompt in pair(one, None)[0]] == [expected]
    assert [text_or_ids(prompt) for prompt in pair(given, None)[0]] == [expected] * len(given)
    assert pair(np.array([expected, expected]), None)[0] == [expected, expected]
    assert all(type(token_id) is int for token_id in text_or_ids(np.array(expected)))
    assert text_or_ids(range(3)) == [0, 1, 2]
    assert pair([], None) == ([], [])
    assert pair("ab", None)[0] == ["ab"]
