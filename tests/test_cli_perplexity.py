"""`nvg perplexity`: exact against the naive reference, and one-line errors."""

import errno
import io
import json
import math

import numpy as np
import pytest
import reference
from checkpoints import END_OF_TEXT
from cli_runner import run_cli

from nvg import LLM
from nvg.errors import EngineError, ParameterError
from nvg.perplexity import Window, measure, windows

TEXT = "the sand in her hand and the ending of it all, so on: " * 4


def expected(directory, token_ids, context, stride):
    """(nats of each predicted token, its id), by the formula."""
    model = reference.load(directory)
    found, done = [], 0
    for begin in range(0, len(token_ids), stride):
        end = min(begin + context, len(token_ids))
        logits = reference.logits(model, token_ids[begin:end])
        for position in range(max(done, begin + 1), end):
            row = logits[position - begin - 1]
            log_sum = math.log(sum(math.exp(value - max(row)) for value in row)) + max(row)
            found.append((log_sum - row[token_ids[position]], token_ids[position]))
        done = end
        if end == len(token_ids):
            return found
    raise AssertionError("the windows do not reach the end")


@pytest.mark.parametrize(
    ("context", "stride"), [(None, None), (64, 64), (17, None), (20, 5), (2, 1), (2, 2), (64, 1), (40, 39)], ids=str
)
def test_it_is_what_the_formula_says(context, stride, tiny_checkpoint, compiled_kernels, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    options = [] if context is None else ["--context", context]
    options += [] if stride is None else ["--stride", stride]
    done = run_cli("perplexity", path, "-m", tiny_checkpoint, *options, "--format", "json")
    assert (done.code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    with LLM(str(tiny_checkpoint)) as llm:
        tokenizer = llm.tokenizer
    context = context or 64
    nats, ids = zip(*expected(tiny_checkpoint, tokenizer.encode(TEXT), context, stride or context), strict=True)
    assert result["tokens"] == len(nats)
    assert result["bytes"] == len(tokenizer.decode_bytes(ids))
    assert result["nats_per_token"] == pytest.approx(np.mean(nats), abs=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / result["bytes"], abs=1e-5)
    assert result["tok_s"] > 0
    assert (result["context"], result["stride"]) == (context, stride or context)
    assert (result["model"], result["file"]) == (str(tiny_checkpoint), str(path))


def test_json_tells_the_precisions(tiny_checkpoint, compiled_kernels):
    done = run_cli("perplexity", "-", "-m", tiny_checkpoint, "--format", "json", stdin=b"some text")
    record = json.loads(done.stdout)
    assert (record["dtype"], record["kv_dtype"]) == ("float32", "float32")


def test_stdin_and_the_table(tiny_checkpoint, compiled_kernels):
    done = run_cli("perplexity", "-", "-m", tiny_checkpoint, "--max-tokens", 70, stdin=TEXT.encode())
    assert (done.code, done.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(rows) == ["nats a token", "perplexity", "bits a byte", "tokens", "tok/s"]
    assert rows["tokens"].strip() == "68 predicted in 2 windows of up to 64"
    assert float(rows["perplexity"]) == pytest.approx(math.exp(float(rows["nats a token"])), rel=1e-4)


def test_special_tokens_in_the_text_are_text(tiny_checkpoint, compiled_kernels):
    text = END_OF_TEXT.encode()
    result = json.loads(run_cli("perplexity", "-", "-m", tiny_checkpoint, "--format", "json", stdin=text).stdout)
    assert result["tokens"] > 1


@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        (b"", "stdin is empty; give a text of 2 tokens or more"),
        (b"a", "stdin has 1 token; one is predicted from another: give it 2 or more"),
        (b"ab\xffc", "stdin is not UTF-8: byte 0xff at 2; convert it first (iconv -t UTF-8)"),
    ],
)
def test_texts_that_cannot_be_measured(stdin, error, tiny_checkpoint, compiled_kernels, tmp_path):
    done = run_cli("perplexity", "-", "-m", tiny_checkpoint, stdin=stdin)
    assert (done.code, done.stdout, done.error) == (2, "", error)
    path = tmp_path / "text"
    path.write_bytes(stdin)
    assert run_cli("perplexity", path, "-m", tiny_checkpoint).error == error.replace("stdin", repr(str(path)), 1)


def test_a_file_that_cannot_be_read_to_its_end(monkeypatch, tmp_path):
    def broken(path, mode):
        monkeypatch.undo()
        opened = io.BytesIO()
        opened.read = lambda: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
        return opened

    monkeypatch.setattr("nvg.cli.perplexity.open", broken, raising=False)
    done = run_cli("perplexity", tmp_path)
    assert (done.code, done.error) == (1, f"{str(tmp_path)!r} can't be read: Input/output error")


def test_a_file_that_is_not_there(tmp_path):
    done = run_cli("perplexity", tmp_path / "none")
    assert (done.code, done.error) == (1, f"{str(tmp_path / 'none')!r}: No such file or directory")
    assert run_cli("perplexity").code == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--context", 1], "--context is 1; it must be an integer >= 2"),
        (["--context", 513], "--context is 513; it must be from 2 to 512, the model's positions"),
        (["--stride", 0], "--stride is 0; it must be an integer >= 1"),
        (["--stride", 513], "--stride is 513; it must be from 1 to the context, 512"),
        (["--context", 9, "--stride", 10], "--stride is 10; it must be from 1 to the context, 9"),
        (["--max-tokens", 1], "--max-tokens is 1; it must be an integer >= 2"),
        (["--threads", 0], "--threads is 0; it must be an integer from 1 to 256"),
    ],
    ids=str,
)
def test_options_outside_their_ranges(arguments, error, monkeypatch):
    monkeypatch.setattr("nvg.cli.perplexity._load", None)  # all of it is seen before anything is loaded
    done = run_cli("perplexity", "-", *arguments, stdin=b"some text")
    assert (done.code, done.error) == (2, error)


def test_windows_predict_each_token_once():
    assert list(windows(10, 4, 4)) == [Window(0, 1, 4), Window(4, 5, 8), Window(8, 9, 10)]
    assert list(windows(9, 4, 4)) == [Window(0, 1, 4), Window(4, 5, 8)], "a token alone has nothing before it"
    assert list(windows(7, 4, 2)) == [Window(0, 1, 4), Window(2, 4, 6), Window(4, 6, 7)]
    for num_tokens in range(2, 30):
        for context in range(2, 12):
            for stride in range(1, context):
                found = [t for w in windows(num_tokens, context, stride) for t in range(w.first, w.end)]
                assert found == list(range(1, num_tokens))
                for window in windows(num_tokens, context, stride):
                    assert window.end - window.begin <= context
                    assert window.begin == 0 or window.first - window.begin >= context - stride


def test_measure_checks_what_it_is_given(tiny_checkpoint, compiled_kernels):
    seen = []
    with LLM(str(tiny_checkpoint)) as llm:
        for arguments in ({"context": 1}, {"context": 65}, {"context": 8, "stride": 9}, {"context": 8, "stride": 0}):
            with pytest.raises(ParameterError, match=r"^(context|stride) is "):
                measure(llm, [1, 2, 3], **arguments)
        with pytest.raises(ParameterError, match="the text has 1 tokens"):
            measure(llm, [1], context=8)
        result = measure(llm, list(range(20)), context=8, progress=lambda *progress: seen.append(progress))
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == pytest.approx(result.nats_per_token)


def test_a_model_that_gives_nan_is_an_error(tiny_checkpoint, compiled_kernels, monkeypatch):
    with LLM(str(tiny_checkpoint)) as llm:
        right = llm.logits

        def logits(token_ids):
            rows = right(token_ids)
            if token_ids[0] == 4:
                rows[-2] = np.nan
            return rows

        monkeypatch.setattr(llm, "logits", logits)
        with pytest.raises(EngineError, match="the model left NaN among tokens 3 to 5; its weights may be damaged"):
            measure(llm, [1, 2, 3, 4, 5, 6, 7], context=3)
