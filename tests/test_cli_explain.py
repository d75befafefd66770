"""`nvg generate --explain` and `nvg explain`."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import traces
from cli_runner import finish, run_cli, start_cli

from nvg.cli.live import LiveView
from nvg.explain.reader import read_trace
from nvg.params import Distribution, Explanation, Piece, StageRecord

pytestmark = pytest.mark.usefixtures("compiled_kernels")
PROMPT = "The king"


@pytest.fixture
def generate(tiny_checkpoint):
    def run(*arguments, **options):
        return run_cli("generate", *arguments, "-m", tiny_checkpoint, "--seed", 3, "--max-tokens", 5, **options)

    return run


def test_the_text_stays_the_same_and_stderr_says_how_it_came(generate):
    plain, explained = generate(PROMPT), generate(PROMPT, "--explain")
    assert (explained.code, explained.stdout) == (0, plain.stdout)
    lines = explained.stderr.splitlines()
    assert lines[0].split() == ["left", "removed", "entropy/nats", "rank", "prob"]
    assert re.fullmatch(r'".*" token 1', lines[1])
    assert [line.split()[0] for line in lines[2:6]] == ["model", "topk", "topp", "temperature"]
    assert re.fullmatch(r"  topk +40 +-[\d.]+ % +[\d.]+ +\d+ +[\d.]+ %", lines[3])
    assert sum(line.endswith(f"token {number}") for line in lines for number in range(1, 6)) == 5
    assert "\x1b" not in explained.stderr


@pytest.mark.parametrize("arguments", [("--explain", PROMPT), (PROMPT, "--explain")])
def test_a_prompt_after_a_bare_flag_is_the_prompt(generate, arguments):
    done = generate(*arguments)
    assert done.stdout == generate(PROMPT).stdout
    assert "token 5" in done.stderr


def test_a_bare_flag_leaves_the_prompt_to_stdin(generate):
    assert generate("--explain", stdin=PROMPT.encode()) == generate("--explain", PROMPT)


@pytest.mark.parametrize("written", [("--explain", "{}"), ("--explain={}",)])
@pytest.mark.parametrize("first", [True, False])
def test_a_file_gets_the_trace(generate, tmp_path, written, first):
    path = tmp_path / "trace.jsonl"
    option = [word.format(path) for word in written]
    done = generate(*option, PROMPT) if first else generate(PROMPT, *option)
    assert done == generate(PROMPT)
    trace = read_trace(str(path), print)
    assert (trace.header["prompt"], trace.header["seed"]) == (PROMPT, 3)
    assert "".join(record["text"] for record in trace.tokens[0]) == done.stdout[:-1]


def test_both_at_once(generate, tmp_path):
    done = generate(PROMPT, "--explain", "--explain", tmp_path / "trace.jsonl")
    assert "token 5" in done.stderr
    assert len(read_trace(str(tmp_path / "trace.jsonl"), print).tokens[0]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROMPT, "--explain", "x.txt"), "--explain is 'x.txt': the name of its file must end in .jsonl"),
        (("--explain", "trace.json"), "--explain is 'trace.json': the name of its file must end in .jsonl"),
        (("--explain=/dev/null",), "--explain is '/dev/null': the name of its file must end in .jsonl; a prompt goes"),
        ((PROMPT, "--explain", "another prompt"), "--explain is 'another prompt': the name"),
        ((PROMPT, "--explain", "a.jsonl", "--explain", "b.jsonl"), "--explain has 2 files; it writes one"),
        ((PROMPT, "--branches", 3), "--branches is 3, and there is no --explain FILE.jsonl to write them into"),
        ((PROMPT, "--branches", 10, "--explain", "a.jsonl"), "10 is not in the range 0<=x<=9"),
    ],
)
def test_usage_errors(generate, arguments, message):
    done = generate(*arguments)
    assert done.code == 2
    assert message in done.error


def test_a_trace_that_can_not_be_written_is_told_before_any_work(generate, tmp_path):
    done = generate(PROMPT, "--explain", tmp_path / "none" / "x.jsonl")
    assert (done.code, done.stdout) == (1, "")
    assert "No such file or directory" in done.error
    (tmp_path / "mine.jsonl").write_text('{"prompt": "mine"}\n')
    done = generate(PROMPT, "--explain", tmp_path / "mine.jsonl")
    assert (done.code, done.stdout) == (1, "")
    assert "exists and is no trace" in done.error


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_full_disk_is_named(generate, tmp_path):
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    done = generate(PROMPT, "--explain", tmp_path / "full.jsonl")
    assert done.code == 1
    assert done.error == f"'{tmp_path}/full.jsonl': No space left on device"


def test_branches(generate, tmp_path):
    path = tmp_path / "trace.jsonl"
    done = generate(PROMPT, "-n", 2, "--explain", path, "--branches", 2, "--branch-tokens", 3)
    assert done.stdout == generate(PROMPT, "-n", 2).stdout
    trace = read_trace(str(path), print)
    assert sorted(trace.branches) == [(choice, index) for choice in (0, 1) for index in range(5)]
    assert all(len(one["continuation"]) == 3 for some in trace.branches.values() for one in some)
    assert {len(some) for some in trace.branches.values()} == {2}


@pytest.mark.slow
def test_what_is_killed_leaves_what_it_had(tiny_checkpoint, tmp_path):
    path = tmp_path / "trace.jsonl"
    endless = ("--max-tokens", 10**6, "--on-full", "slide")
    process = start_cli("generate", PROMPT, "-m", tiny_checkpoint, *endless, "--explain", path)
    while not path.exists() or path.stat().st_size < 50_000:
        assert process.poll() is None
    process.kill()
    finish(process)
    trace = read_trace(str(path), lambda line: None)
    assert len(trace.tokens[0]) > 10
    assert run_cli("explain", path).code == 0


def test_a_page(tmp_path):
    path = traces.write(tmp_path / "some.trace.jsonl", traces.header(), traces.token(0, [" a", " b"]))
    done = run_cli("explain", path)
    assert done == (0, "", f"nvg: 1 tokens in {tmp_path}/some.trace.html\n")
    page = (tmp_path / "some.trace.html").read_text(encoding="utf-8")
    assert run_cli("explain", path, "-o", "-").stdout == page
    assert run_cli("explain", path, "-o", tmp_path / "x.html").code == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == page


def test_a_page_takes_no_other_file_s_place(tmp_path):
    trace, page, other = traces.write(tmp_path / "t.jsonl", traces.header()), tmp_path / "p.html", tmp_path / "notes"
    other.write_text("mine")
    refused = run_cli("explain", trace, "-o", other)
    assert (refused.code, other.read_text()) == (2, "mine")
    assert (
        f"--output is {str(other)!r}, which exists and is no page of nvg explain: give another file" in refused.stderr
    )
    assert [run_cli("explain", trace, "-o", page).code for _ in range(2)] == [0, 0]


def test_a_cut_trace_has_a_page_and_a_warning(tmp_path):
    path = traces.write(tmp_path / "x.jsonl", traces.header(), traces.token(0, [" a", " b"]), traces.end())
    path.write_bytes(path.read_bytes()[:-9])
    done = run_cli("explain", path)
    assert done.code == 0
    assert done.stderr.startswith(f"nvg: warning: the last line of '{path}' is cut off; all before it is shown\n")


def test_what_is_no_trace_is_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "x"}\n')
    done = run_cli("explain", path)
    assert done.code == 1
    assert done.error == f"'{path}' is no trace of nvg generate --explain: its first line is no header"
    assert not (tmp_path / "x.html").exists()
    done = run_cli("explain", tmp_path / "none.jsonl")
    assert (done.code, done.error) == (1, f"'{tmp_path}/none.jsonl': No such file or directory")
    done = run_cli("explain", path, "-o", path)
    assert done.code == 2
    assert "the trace itself: give another file" in done.error


README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_is_seen():
    (shown,) = re.findall(r"^```text\n(.*?)^```", README, re.M | re.S)
    assert run_cli("generate", "Once upon a time", "--seed", 2, "--max-tokens", 2, "--explain").stderr == shown + "\n"


def test_the_readme_s_commands_run(tmp_path, monkeypatch):
    (commands,) = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        assert run_cli(*shlex.split(command)[1:]).code == 0
    assert "</html>" in (tmp_path / "page.html").read_text(encoding="utf-8")


# ---- the view on a terminal


class Tokenizer:
    TEXTS = (b" king", b"\x1b[2J\r\n", b"\xe2\x98", "\u202e한국어".encode(), b" " + b"x" * 200)

    def token_bytes(self, token_id):
        return self.TEXTS[token_id]


def explanation(token_id):
    before, after = Distribution(50257, 4.5, 2, 0.25), Distribution(40, 2.25, 1, 0.5)
    candidates = dict.fromkeys(range(5), (0.25, 0.5))
    return Explanation(token_id, before, (StageRecord("top\x1bk", 0.5, before, after, 1e-5),), candidates)


@pytest.fixture
def shown(monkeypatch):
    """What a terminal gets of some tokens."""

    def show(columns, token_ids=(0,), encoding="utf-8"):
        written = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
        written.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", written)
        monkeypatch.setenv("COLUMNS", str(columns))
        view = LiveView(Tokenizer(), ["top\x1bk"], 1)
        for token_id in token_ids:
            view.add(Piece("", [token_id], None, None, 0, None, [explanation(token_id)]))
        written.flush()
        return written.buffer.getvalue().decode("utf-8")

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return show


def test_a_terminal_gets_colours_and_bars(shown):
    text = shown(100)
    assert '\x1b[33m\x1b[1m" king"' in text
    assert text.count("█") > 10
    assert [len(re.findall("[█▏▎▍▌▋▊▉]", line)) for line in text.splitlines()[2:4]] == [8, 15]


def test_no_colour_where_none_is_wanted(shown, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(100)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(100)


def test_tokens_and_names_can_not_command_the_terminal(shown):
    text = re.sub(r"\x1b\[\d+m", "", shown(200, range(5)))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\u202e" not in text
    assert r'"\x1b[2J\r\n" token 2' in text
    assert r'"\xe2\x98" token 3' in text
    assert r"top\x1bk" in text


@pytest.mark.parametrize("columns", [24, 32, 40, 48, 80, 200])
def test_no_line_but_a_token_s_is_wider_than_the_terminal(shown, columns):
    lines = re.sub(r"\x1b\[\d+m", "", shown(columns, (0, 1, 3))).splitlines()
    assert max(map(len, lines)) <= columns


def test_bars_need_an_encoding_that_has_them(shown):
    assert not re.search("[█▏▎▍▌▋▊▉]", shown(100, encoding="ascii"))


def test_text_waits_where_it_would_come_between_the_lines(generate, monkeypatch):
    monkeypatch.setattr(LiveView, "shares_terminal", True)
    assert generate(PROMPT, "--explain").stdout == generate(PROMPT).stdout
    assert generate(PROMPT, "--explain", "-n", 2, "--echo").stdout == generate(PROMPT, "-n", 2, "--echo").stdout


# ---- what samplers take

SLOW = """
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Slow:
    '''Takes its time.'''
    def apply(self, logits, token_ids, state):
        time.sleep(0.2)
"""


def test_stats_name_the_sampler_that_takes_most_of_the_time(generate, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    chain = ("--sampler", "topk", "--sampler", f"{tmp_path}/slow.py:Slow")
    done = generate(PROMPT, *chain, "--stats")
    first, second = done.stderr.splitlines()
    assert re.search(r"; a token's sampling [\d.]+ ms \(topk [\d.]+ .?s, Slow [\d.]+ ms\); seed 3", first)
    title = f"sampler 'Slow' of {tmp_path}/slow.py"
    assert re.fullmatch(rf"nvg: {title} took 1\.\d+ s of the \d+\.\d+ s that all steps took", second)
