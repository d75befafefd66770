"""`nvg generate`: what it writes, where, and in which form."""

import io
import json
import re
import sys

import pytest
from checkpoints import END_OF_TEXT, TALES, vocabulary
from cli_runner import run_cli

import nvg.llm
from nvg import LLM, SamplingParams
from nvg.cli import generate as generate_module
from nvg.params import Piece
from nvg.sampling.compose import DEFAULT_CHAIN

pytestmark = pytest.mark.usefixtures("compiled_kernels")

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def expected(compiled_kernels, tiny_checkpoint):
    """Greedy continuations of the tiny model by the Python API."""
    with LLM(str(tiny_checkpoint)) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, logprobs=2)
        return {prompt: llm.generate(prompt, params)[0] for prompt in (PROMPT, "The king", "")}


@pytest.fixture
def greedy(tiny_checkpoint):
    """Runs `nvg generate` on the tiny model."""

    def run(*arguments, **options):
        chain = ("--sampler", "greedy", "--max-tokens", 12)
        return run_cli("generate", *arguments, *chain, "-m", tiny_checkpoint, **options)

    return run


def test_the_embedded_model_is_the_default():
    with LLM("tales") as llm:
        text = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))[0].text
    assert text.startswith(" there was")
    arguments = ("generate", PROMPT, "--max-tokens", 12, "--temperature", 0)
    assert run_cli(*arguments) == run_cli(*arguments, "-m", TALES) == (0, text + "\n", "")


def test_stdout_has_the_continuation_and_nothing_else(expected, greedy):
    assert greedy(PROMPT) == (0, expected[PROMPT].text + "\n", "")


def test_guidance_is_that_of_the_api(greedy, tiny_checkpoint):
    with LLM(str(tiny_checkpoint)) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, n=2, negative_prompt="The king", guidance_scale=3)
        text = llm.generate(PROMPT, params)[0].text
    arguments = ("--negative-prompt", "The king", "--guidance-scale", 3)
    assert greedy(PROMPT, *arguments).stdout == text + "\n" != greedy(PROMPT).stdout
    assert json.loads(greedy(PROMPT, *arguments, "-n", 2, "--format", "json").stdout)["choices"][1]["text"] == text


def test_echo_begins_with_the_prompt(expected, greedy):
    assert greedy(PROMPT, "--echo").stdout == PROMPT + expected[PROMPT].text + "\n"


@pytest.mark.parametrize("piped", [b"The king", b"The king\n", b"The king\r\n"])
def test_stdin_is_the_prompt_less_one_newline(expected, piped, greedy):
    assert greedy(stdin=piped) == (0, expected["The king"].text + "\n", "")
    assert json.loads(greedy("--format", "json", stdin=b"The king\n\n").stdout)["prompt"] == "The king\n"


def test_without_a_prompt_there_is_a_default(expected, greedy):
    assert greedy() == (0, expected[PROMPT].text + "\n", f"nvg: no prompt given; continuing {PROMPT!r}\n")


def test_an_error_comes_before_the_default_prompt():
    assert run_cli("generate", "--sampler", "nosuch").error.startswith("no sampler is called 'nosuch'")


def test_a_prompt_wins_over_stdin(expected, greedy):
    assert greedy(PROMPT, stdin=b"The king").stdout == expected[PROMPT].text + "\n"


def test_no_stdin_at_all(monkeypatch):
    monkeypatch.setattr(nvg.cli.options.sys, "stdin", None)
    assert nvg.cli.options.piped_stdin() is None


def test_an_empty_prompt_begins_from_end_of_text(expected, tiny_checkpoint, greedy):
    assert greedy("").stdout == greedy(stdin=b"").stdout == expected[""].text + "\n"
    end_of_text = vocabulary()[END_OF_TEXT]
    with LLM(str(tiny_checkpoint)) as llm:
        assert llm.stream("", SamplingParams(max_tokens=0)).prompt_token_ids == [end_of_text]


def test_json(expected, greedy, tiny_checkpoint):
    done = greedy(PROMPT, "--format", "json", "--seed", 7, "--logprobs", 2)
    record = json.loads(done.stdout)
    assert done.stderr == ""
    assert list(record) == ["model", "prompt", "seed", "choices", "usage", "timing"]
    assert (record["model"], record["prompt"], record["seed"]) == (str(tiny_checkpoint), PROMPT, 7)
    assert record["usage"] == {"prompt_tokens": len(expected[PROMPT].prompt_token_ids), "completion_tokens": 12}
    assert list(record["timing"]) == ["load_s", "first_token_s", "prefill_tok_s", "decode_tok_s"]
    assert all(value > 0 for value in record["timing"].values())
    (choice,) = record["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected[PROMPT].text, "length")
    assert choice["token_ids"] == expected[PROMPT].token_ids
    for shown, one in zip(choice["logprobs"], expected[PROMPT].logprobs, strict=True):
        assert (shown["token_id"], shown["logprob"]) == (one.token_id, pytest.approx(one.logprob, abs=1e-6))
        assert list(shown["top"]) == [str(token_id) for token_id in one.top]


def test_jsonl_is_a_line_for_each_choice(tiny_checkpoint):
    arguments = ("generate", PROMPT, "-m", tiny_checkpoint, "-n", 3, "--max-tokens", 6, "--seed", 11)
    done = run_cli(*arguments, "--format", "jsonl")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(record["index"] for record in records) == [0, 1, 2]
    assert {(record["prompt"], record["seed"]) for record in records} == {(PROMPT, 11)}
    together = json.loads(run_cli(*arguments, "--format", "json").stdout)["choices"]
    assert [(r["text"], r["token_ids"]) for r in sorted(records, key=lambda r: r["index"])] == [
        (choice["text"], choice["token_ids"]) for choice in together
    ]
    text = run_cli(*arguments)
    assert text.stdout == "".join(choice["text"] + "\n" for choice in together)
    assert text.stderr == "".join(f"nvg: choice {i} of 3:\n" for i in (1, 2, 3))


def test_max_tokens_0_is_prefill_only(tiny_checkpoint):
    arguments = ("generate", PROMPT, "-m", tiny_checkpoint, "--max-tokens", 0)
    record = json.loads(run_cli(*arguments, "--format", "json").stdout)
    assert record["choices"] == [{"text": "", "token_ids": [], "finish_reason": "length"}]
    assert record["timing"]["first_token_s"] is None
    assert run_cli(*arguments) == (0, "\n", "")


def test_stop_ends_before_the_text_and_is_not_printed(expected, greedy):
    text = expected[PROMPT].text
    stop = text[3:6]
    record = json.loads(greedy(PROMPT, "--stop", stop, "--stop", "never", "--format", "json").stdout)
    assert record["choices"][0]["text"] == text[: text.index(stop)]
    assert record["choices"][0]["finish_reason"] == "stop"
    assert greedy(PROMPT, "--stop", stop).stdout == text[: text.index(stop)] + "\n"


def test_the_default_chain_is_the_one_that_help_tells():
    shown = ", ".join(f"{name}({next(iter(options.values()))})" for name, options in DEFAULT_CHAIN)
    assert shown in " ".join(run_cli("generate", "--help").stdout.split())


def test_flags_and_options_set_stages(tiny_checkpoint):
    base = ("generate", PROMPT, "-m", tiny_checkpoint, "--seed", 5, "--max-tokens", 8)
    plain = run_cli(*base).stdout
    assert run_cli(*base, "-o", "k=40", "-o", "topp.p=0.95", "--temperature", 0.8).stdout == plain
    assert run_cli(*base, "--top-k", 1).stdout == run_cli(*base, "--temperature", 0).stdout != plain
    chain = ("--sampler", "topk", "--sampler", "topp", "--sampler", "temperature")
    assert run_cli(*base, *chain, "--top-p", 0.95, "-o", "t=0.8").stdout == plain


def test_stats_are_on_stderr(expected, greedy):
    done = greedy(PROMPT, "--stats", "--seed", 3)
    assert done.stdout == expected[PROMPT].text + "\n"
    assert done.stderr.startswith("nvg: load ")
    assert "first token" in done.stderr
    assert "decode" in done.stderr
    sampling = r"\(12 tokens\); a token's sampling [\d.]+ .?s \(greedy [\d.]+ .?s\)"
    assert re.search(sampling + "; seed 3; ended by length\n$", done.stderr)


def test_logprobs_are_lines_on_stderr(expected, greedy):
    done = greedy(PROMPT, "--logprobs", 2)
    assert done.stdout == expected[PROMPT].text + "\n"
    lines = done.stderr.splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(
        [one.logprob for one in expected[PROMPT].logprobs], abs=1e-4
    )


def test_other_tokenizers(tiny_checkpoint):
    record = json.loads(
        run_cli("generate", "hé", "-m", tiny_checkpoint, "--tokenizer", "bytes", "--max-tokens", 2, "--format", "json")
        .stdout
    )  # fmt: skip
    assert record["usage"]["prompt_tokens"] == 3
    assert (record["model"], all(i < 257 for i in record["choices"][0]["token_ids"])) == (str(tiny_checkpoint), True)


def test_a_prompt_that_fills_the_context_is_told(tiny_checkpoint):
    done = run_cli("generate", "#" * 64, "-m", tiny_checkpoint)
    assert done == (0, "\n", "nvg: the prompt fills the context of 64 tokens: there is no room for output\n")


def test_what_the_encoding_lacks_is_replaced(expected, greedy):
    assert greedy("é ☃", "--echo", encoding="ascii").stdout.startswith("? ?")


def test_a_terminal_is_sent_no_control_characters(monkeypatch):
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", written)
    choice = generate_module.Choice(0)
    writer = generate_module.TextWriter([choice], "")
    choice.add(Piece("\x1b[2Jred\r\n\tx\x9b", [1], None, "stop"))
    writer.update(choice)
    assert written.getvalue() == "�[2Jred�\n\tx�\n"


class Interrupted:
    """A stream that Ctrl-C ends after some pieces of two choices."""

    prompt_token_ids, seed = (1, 2), 9

    def __iter__(self):
        yield Piece("one ", [5], None, None, 0)
        yield Piece("uno", [6], None, None, 1)
        yield Piece("two", [7], None, None, 0)
        raise KeyboardInterrupt

    def close(self):
        pass


def test_ctrl_c_keeps_what_there_is(monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(nvg.llm.LLM, "stream", lambda *_: Interrupted())
    arguments = ("generate", PROMPT, "-n", 2, "-m", tiny_checkpoint)
    done = run_cli(*arguments)
    assert done[:2] == (130, "one two\nuno\n")
    assert done.stderr.splitlines()[-1] == "nvg: interrupted"
    done = run_cli(*arguments, "--format", "jsonl")
    assert done.code == 130
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["index"], r["text"], r["finish_reason"]) for r in records] == [
        (0, "one two", "aborted"),
        (1, "uno", "aborted"),
    ]
    done = run_cli(*arguments, "--format", "json")
    assert done.code == 130
    assert [choice["token_ids"] for choice in json.loads(done.stdout)["choices"]] == [[5, 7], [6]]


def test_when_the_context_is_full(tiny_checkpoint):
    arguments = ("generate", PROMPT, "-m", tiny_checkpoint, "--sampler", "greedy", "--max-tokens", 200)
    stopped = run_cli(*arguments, "--format", "json")
    slid = run_cli(*arguments, "--on-full", "slide", "--format", "json")
    tokens = [json.loads(done.stdout)["choices"][0]["token_ids"] for done in (stopped, slid)]
    assert len(tokens[0]) < len(tokens[1]) == 200
    assert tokens[1][: len(tokens[0])] == tokens[0]
    done = run_cli(*arguments, "--on-full", "error")
    assert done.code == 2
    assert "and --max-tokens is 200, the context holds" in done.error


SAMPLERS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Second:
    '''Only the second most probable token.'''
    def apply(self, logits, token_ids, state):
        keep = logits.argsort()[-2]
        value = logits[keep]
        logits[:] = float("-inf")
        logits[keep] = value

@dataclass(frozen=True)
class Breaks:
    after: int = 2
    def apply(self, logits, token_ids, state):
        if state.step == self.after:
            raise RuntimeError("out of luck")
"""


def test_a_sampler_in_a_file(tmp_path, tiny_checkpoint):
    (tmp_path / "mine.py").write_text(SAMPLERS)
    arguments = ("generate", PROMPT, "-m", tiny_checkpoint, "--max-tokens", 1)
    done = run_cli(*arguments, "--sampler", f"{tmp_path}/mine.py:Second")
    with LLM(str(tiny_checkpoint)) as llm:
        row = llm.logits(llm.tokenizer.encode(PROMPT))[-1]
    assert done == (0, llm.tokenizer.decode([int(row.argsort()[-2])]) + "\n", "")


def test_messages_about_a_file_name_it(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("three = 3\n\n\nclass Plain:\n    def apply(self, logits, token_ids, state): ...\n")
    done = run_cli("generate", "hi", "--sampler", f"{path}:three")
    assert (done.code, done.error) == (1, f"sampler 'three' of {path} is no sampler: 3 has no method apply()")
    done = run_cli("generate", "hi", "--sampler", f"{path}:Plain")
    assert (done.code, done.error) == (
        1,
        f"{path}:Plain is no sampler: it is not a dataclass; write @dataclass(frozen=True) above the class",
    )


def test_a_sampler_that_breaks_ends_the_request_with_the_text_so_far(tmp_path, tiny_checkpoint):
    (tmp_path / "mine.py").write_text(SAMPLERS)
    base = ("generate", PROMPT, "-m", tiny_checkpoint)
    chain = ("--sampler", f"{tmp_path}/mine.py:Breaks", "--sampler", "greedy")
    done = run_cli(*base, *chain, "-o", "after=3", "--format", "json")
    (choice,) = json.loads(done.stdout)["choices"]
    assert (done.code, choice["finish_reason"], len(choice["token_ids"])) == (1, "error", 3)
    assert "out of luck" in choice["error"]
    assert done.error == choice["error"]
    done = run_cli(*base, *chain)
    assert done.code == 1
    assert done.stdout == run_cli(*base, "--sampler", "greedy", "--max-tokens", 2).stdout
    assert "Breaks" in done.error
