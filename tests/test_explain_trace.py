"""Traces: what is written is what was seen; what is read may be anything."""

import dataclasses
import json
import math
import re

import pytest
import traces

import nvg.explain.trace as trace_module
from nvg import LLM, SamplingParams
from nvg.errors import TraceError
from nvg.explain.branches import alternatives, grow
from nvg.explain.page import make_page
from nvg.explain.reader import read_trace
from nvg.explain.trace import TraceWriter, write_trace

PROMPT = "The king"


@dataclasses.dataclass(frozen=True)
class Reverse:
    """Ranks change, and nothing is removed."""

    def apply(self, logits, token_ids, state):
        logits *= -0.1


PARAMS = SamplingParams(sampler=[("topk", {"k": 6}), Reverse()], max_tokens=8, seed=2**64 - 1, explain=True, n=2)


def never(line):
    raise AssertionError(line)


@pytest.fixture(scope="module")
def made(compiled_kernels, tiny_checkpoint, tmp_path_factory):
    """A run's output, its branches, its trace's path, and the model's tokenizer."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    with LLM(str(tiny_checkpoint)) as llm:
        (output,) = llm.generate(PROMPT, PARAMS)
        write_trace(str(path), llm, PARAMS, output)
        (branches,) = grow(llm, PARAMS, output.prompt_token_ids, output.explanations, num=3, num_tokens=5)
        rows = {
            (one.index, one.token_id): [
                int(llm.logits([*output.prompt_token_ids, *output.token_ids[: one.index], one.token_id,
                                *(next_one.token_id for next_one in one.tokens[:length])])[-1].argmax())
                for length in range(len(one.tokens))
            ]
            for one in branches[:6]
        }  # fmt: skip
        return output, branches, path, llm.tokenizer, rows


def test_every_number_is_in_the_trace(made):
    output, _, path, tokenizer, _ = made
    lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert [line["type"] for line in lines] == ["header", *(["token"] * 8 + ["end"]) * 2]
    head = lines[0]
    assert (head["nvg_trace"], head["prompt"], head["seed"], head["n"]) == (1, PROMPT, 2**64 - 1, 2)
    assert head["prompt_token_ids"] == output.prompt_token_ids
    assert "".join(head["prompt_texts"]) == PROMPT
    chain = [(stage["name"], stage["options"]) for stage in head["chain"]]
    assert chain == [("topk", {"k": 6}), ("Reverse", {})]
    for choice in output.outputs:
        tokens = [line for line in lines if line["type"] == "token" and line["choice"] == choice.index]
        for index, (line, explanation) in enumerate(zip(tokens, choice.explanations, strict=True)):
            assert (line["index"], line["token_id"]) == (index, explanation.token_id)
            assert line["model"] == {
                "candidates": explanation.model.num_candidates,
                "entropy": explanation.model.entropy,
                "rank": explanation.model.rank,
                "prob": explanation.model.prob,
            }
            for stage, record in zip(line["stages"], explanation.stages, strict=True):
                before, after = record.before, record.after
                assert stage == {
                    "name": record.name,
                    "removed": record.removed,
                    "candidates": after.num_candidates,
                    "entropy": after.entropy,
                    "rank_before": before.rank,
                    "rank": after.rank,
                    "prob_before": before.prob,
                    "prob": after.prob,
                    "seconds": record.seconds,
                }
            assert line["candidates"] == [
                [i, tokenizer.token_bytes(i).decode("utf-8", "backslashreplace"), list(probs)]
                for i, probs in explanation.candidates.items()
            ]


def test_the_schema_is_what_is_documented(made):
    _, _, path, _, _ = made
    sections = re.findall(r"^    (header|token|end|branch) +(.*?)(?=^    \w|\Z)", trace_module.__doc__, re.M | re.S)
    documented = {name: re.findall(r"\w+", text) for name, text in sections}
    for line in map(json.loads, path.read_text().splitlines()):
        inner = [one for value in line.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
        for record in (line, *inner):
            assert record.keys() - {"type"} <= set(documented[line["type"]])


def test_branches_are_the_likeliest_alternatives_and_what_is_likeliest_after_them(made):
    output, branches, _, _, rows = made
    for index, explanation in enumerate(output.explanations):
        found = [one.token_id for one in branches if one.index == index]
        assert found == alternatives(explanation, 3)
        assert len(found) == 3
        assert explanation.token_id not in found
        final = {i: probs[-1] for i, probs in explanation.candidates.items() if i != explanation.token_id}
        assert [final[i] for i in found] == sorted((p for p in final.values() if p), reverse=True)[:3]
    for one in branches[:6]:
        assert [token.token_id for token in one.tokens] == rows[one.index, one.token_id]
        assert all(-100 < token.logprob < 0 for token in one.tokens)


def test_branches_end_with_the_context_and_with_the_text(tiny_checkpoint, compiled_kernels):
    with LLM(str(tiny_checkpoint)) as llm:
        params = SamplingParams(max_tokens=60, seed=1, explain=True, ignore_eos=True, on_full="slide")
        (output,) = llm.generate(PROMPT * 3, params)
        num_prompt, context = len(output.prompt_token_ids), llm.max_model_len
        assert num_prompt + len(output.token_ids) > context
        some = output.explanations[context - num_prompt - 4 :]
        history = output.prompt_token_ids + output.token_ids[: context - num_prompt - 4]
        lengths = {one.index: len(one.tokens) for part in grow(llm, params, history, some, num=1) for one in part}
        assert lengths == {0: 3, 1: 2, 2: 1, 3: 0}
        banned = alternatives(output.explanations[0], 1)
        ending = dataclasses.replace(params, stop_token_ids=banned)
        (first,) = grow(llm, ending, output.prompt_token_ids, output.explanations[:1], num=1)
        assert [(one.token_id, one.tokens) for one in first] == [(banned[0], [])]


def test_what_is_written_can_be_read(made):
    trace = read_trace(str(made[2]), never)
    assert [len(tokens) for tokens in trace.tokens.values()] == [8, 8]
    assert [end["finish_reason"] for end in trace.ends.values()] == ["length", "length"]


@pytest.fixture
def lines(made):
    return made[2].read_bytes().splitlines(keepends=True)


def test_a_trace_cut_anywhere_is_read_to_its_last_whole_line(made, lines, tmp_path):
    data, path = b"".join(lines), tmp_path / "cut.jsonl"
    for size in range(len(lines[0]), len(data), 997):
        path.write_bytes(data[:size])
        warnings = []
        trace = read_trace(str(path), warnings.append)
        num_whole = data[:size].count(b"\n")
        whole = data[:size].endswith(b"\n") or data[size : size + 1] == b"\n"
        records = sum(map(len, trace.tokens.values())) + len(trace.ends) + 1
        assert records == num_whole + (whole and not data[:size].endswith(b"\n"))
        assert len(warnings) == (not whole)
        assert all("is cut off" in warning for warning in warnings)
        make_page(trace)


def changed(line, **fields):
    return json.dumps({**json.loads(line), **fields}).encode() + b"\n"


def without(line, name):
    record = json.loads(line)
    del record[name]
    return json.dumps(record).encode() + b"\n"


DAMAGE = [
    (lambda lines: [], "is no trace of nvg generate --explain: it is empty"),
    (lambda lines: [b"\n"], "is no trace of nvg generate --explain: it is not JSON"),
    (lambda lines: [b'{"prompt": "x"}\n'], "is no trace .* its first line is no header"),
    (lambda lines: [b"\x89PNG\r\n\x1a\n\0\0"], "is no trace .* it is not JSON"),
    (lambda lines: [b"[1]\n"], "is no trace .* it is no object"),
    (lambda lines: [lines[0][:40]], "is no trace .* it is not JSON"),
    (lambda lines: lines[1:], "its first line is no header"),
    (lambda lines: [changed(lines[0], nvg_trace=2)], "is a trace of version 2; this nvg reads version 1"),
    (lambda lines: [changed(lines[0], nvg_trace="x" * 999)], "version '?x+'?; this nvg"),
    (lambda lines: [changed(lines[0], chain=3)], "is no trace .* chain is no list"),
    (lambda lines: [changed(lines[0], seed=-1)], "seed is no integer from 0 to"),
    (lambda lines: [changed(lines[0], prompt_texts=[])], "prompt_texts are not as many"),
    (lambda lines: [*lines[:2], b"xx\n", lines[2]], "is damaged: line 3: it is not JSON"),
    (lambda lines: [*lines[:2], lines[2][:50] + b"\n", lines[3]], "is damaged: line 3: it is not JSON"),
    (lambda lines: [*lines[:2], b"\0" * 50 + b"\n"], "is damaged: line 3: it is not JSON"),
    (lambda lines: [*lines[:2], b'{"type": "token", "choice": NaN}\n'], "line 3: it is not JSON"),
    (lambda lines: [*lines[:2], b"[" * 100_000 + b"\n"], "line 3: it is nested too deeply"),
    (lambda lines: [*lines[:2], b'{"type": "token", "choice": ' + b"1" * 9999 + b"}\n"], "line 3: it is not JSON"),
    (lambda lines: [*lines[:2], lines[3]], "line 3: token 1 of choice 0 is missing"),
    (lambda lines: [*lines[:2], lines[0]], "line 3: its type is none of token, end and branch"),
    (lambda lines: [*lines[:2], b'{"type": []}\n'], "line 3: its type is none"),
    (lambda lines: [lines[0], without(lines[1], "model")], "line 2: token has no model"),
    (lambda lines: [lines[0], changed(lines[1], text=5)], "line 2: text is no text"),
    (lambda lines: [lines[0], changed(lines[1], choice=True)], "line 2: choice is no integer"),
    (lambda lines: [lines[0], changed(lines[1], stages=[])], "line 2: its stages are not those of the header"),
    (lambda lines: [lines[0], changed(lines[1], candidates=[])], "line 2: the token is none of its candidates"),
    (lambda lines: [lines[0], changed(lines[1], candidates=[[1, "x"]])], "line 2: candidates is no list of 3"),
    (lambda lines: [lines[0], changed(lines[1], candidates=[[1, "x", [0.5]]])], "line 2: a candidate has not one prob"),
    (
        lambda lines: [lines[0], changed(lines[1], candidates=[[1, "x", [2, 0.5, 1]]])],
        "line 2: candidates is no number",
    ),
    (lambda lines: [lines[0], lines[1].replace(b'"entropy": ', b'"entropy": 1e999, "x": ')], "entropy is no number"),
    (lambda lines: [*lines[:2], json.dumps(traces.branch(1, 1, "", [])).encode() + b"\n"], "choice 0 has no token 1"),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_damage_is_named(number, lines, tmp_path):
    damage, message = DAMAGE[number]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"".join(damage(lines)))
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(str(path), never)
    assert "\n" not in str(caught.value)


def test_a_file_of_somebody_else_s_is_left_alone(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "mine"}\n')
    with pytest.raises(TraceError, match="exists and is no trace: remove it, or give another name"):
        TraceWriter(str(path))
    assert path.read_text() == '{"prompt": "mine"}\n'


def test_an_older_trace_stays_until_there_is_a_new_one(made, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(made[2].read_bytes())
    TraceWriter(str(path)).close()
    assert path.read_bytes() == made[2].read_bytes()


def test_an_old_trace_is_replaced(made, tmp_path, tiny_checkpoint):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(made[2].read_bytes())
    with LLM(str(tiny_checkpoint)) as llm, TraceWriter(str(path)) as trace:
        trace.begin(llm, PARAMS, None, [1], 5)
    assert json.loads(path.read_text())["seed"] == 5


def test_each_line_is_in_the_file_when_it_is_written(made, tmp_path, tiny_checkpoint):
    path = tmp_path / "trace.jsonl"
    params = dataclasses.replace(PARAMS, n=1)
    with LLM(str(tiny_checkpoint)) as llm, TraceWriter(str(path)) as trace:
        stream = llm.stream(PROMPT, params)
        trace.begin(llm, params, PROMPT, stream.prompt_token_ids, stream.seed)
        for number, piece in enumerate(stream, 1):
            trace.add(piece)
            assert path.read_bytes().count(b"\n") == 1 + number + (piece.finish_reason is not None)


def test_options_that_json_lacks_are_written_as_python_writes_them():
    @dataclasses.dataclass(frozen=True)
    class Spec:
        a: object = 3
        b: object = math.inf
        c: object = frozenset([2])
        d: object = (1, "x")

    assert trace_module._options(Spec()) == {"a": 3, "b": "inf", "c": "frozenset({2})", "d": (1, "x")}
    assert trace_module._options(object()) == {}
