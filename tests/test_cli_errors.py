"""Bad input at the command line: one line that names the thing, the value and what is allowed, and the exit code."""

import contextlib
import errno
import io
import json
import os
import sys

import numpy as np
import pytest
from checkpoints import write_checkpoint, write_safetensors
from cli_runner import run_cli

import nvg
from nvg import cli
from nvg.errors import CheckpointError, ModelNotFoundError, NvgError

pytestmark = pytest.mark.usefixtures("compiled_kernels")

PROMPT = "hi"

USAGE = {
    "--max-tokens=-1": "--max-tokens is -1; it must be an integer >= 0",
    "--max-tokens=x": "'--max-tokens': 'x' is not a valid integer",
    "--temperature=nan": "--temperature is nan; it must be a number >= 0 (0 means greedy)",
    "--temperature=-1": "--temperature is -1.0; it must be a number >= 0 (0 means greedy)",
    "--temperature=inf": "--temperature is inf; it must be a finite number >= 0",
    "--top-k=-1": "--top-k is -1; it must be an integer >= 0",
    "--top-p=0": "--top-p is 0.0; it must be a number above 0 and at most 1 (1 means off)",
    "--top-p=1.5": "--top-p is 1.5; it must be a number above 0 and at most 1 (1 means off)",
    "--min-p=2": "--min-p is 2.0; it must be a number from 0 to 1 (0 means off)",
    "-n0": "-n is 0; it must be an integer >= 1",
    "--seed=-1": "--seed is -1; it must be an integer from 0 to 18446744073709551615",
    "--seed=18446744073709551616": "--seed is 18446744073709551616; it must be an integer from 0 to",
    "--logprobs=-1": "--logprobs is -1; it must be an integer >= 0",
    "--kv-memory=2x": "'--kv-memory': '2x' is no size; give bytes, or a number and K, M, G (1000) or Ki, Mi, Gi (1024)",
    "--kv-memory=0": "--kv-memory is 0; it must be an integer >= 1",
    "--kv-memory=1K": "--kv-memory is 1000; it must be at least a block's bytes, ",
    "--kv-memory=0.5Mi": (
        "the request needs 3 blocks of 32 KV entries, the pool has 1: raise --kv-memory or lower --max-tokens"
    ),
    "--on-full=jump": "'--on-full': 'jump' is not one of 'stop', 'error', 'slide'",
    "--threads=0": "--threads is 0; it must be an integer from 1 to 256",
    "--guidance-scale=-1": "--guidance-scale is -1.0; it must be a number from 0 to 1000 (1 means off)",
    "--negative-prompt=sad": "--negative-prompt needs --guidance-scale as well, 1.5 for example (1 means off)",
    "--stop=": "--stop has ''; each stop must be a string that is not empty",
    "--model=": "--model is ''; it must be a model's name or the path of its directory",
    "--dtype=int3": "'--dtype': 'int3' is not",
    "--format=xml": "'--format': 'xml' is not one of 'text', 'json', 'jsonl'",
    "--max-token=3": "--max-tokens",
    "--sampler=toppp": "no sampler is called 'toppp'; did you mean 'topp'? There are: banned, dry,",
    "--sampler=nosuch.py:X": "sampler 'nosuch.py:X': there is no file 'nosuch.py'",
    "--tokenizer=gpt3": "no tokenizer is called 'gpt3'; did you mean 'gpt2'? There are: bytes, gpt2",
    "-oq=3": "no option of this chain is called 'q'. There are: temperature.t, topk.k, topp.p",
    "-op=3": "sampler 'topp': p is 3.0; it must be a number above 0 and at most 1",
    "-op=abc": "sampler 'topp': p is 'abc'; it must be float",
    "-otopp.q=3": "no option of sampler 'topp' is called 'q'. There are: p",
    "-otopl.k=3": "no stage of this chain is called 'topl'; did you mean",
    "-otopk": "option 'topk' is not NAME=VALUE or SAMPLER.NAME=VALUE",
    "another": "Got unexpected extra argument (another) (see nvg generate --help)",
}


@pytest.mark.parametrize("argument", USAGE)
def test_usage(argument):
    done = run_cli("generate", PROMPT, argument)
    assert USAGE[argument] in done.error
    assert done[:2] == (2, "")


@pytest.mark.parametrize("number", [10**3, 10**6, 10**30])
def test_too_many_choices_are_refused_before_anything_is_loaded(number, monkeypatch):
    monkeypatch.setattr("nvg.cli.generate._load", None)
    done = run_cli("generate", PROMPT, "-n", number)
    assert (done.code, done.error) == (2, f"-n is {number}; it must be an integer from 1 to 512")


def test_what_is_set_twice_is_refused():
    done = run_cli("generate", PROMPT, "--top-k", 3, "-o", "topk.k=5")
    assert (done.code, done.stdout) == (2, "")
    assert done.error == "--top-k and the option 'topk.k=5' set the same, topk.k; give one of them"
    assert run_cli("generate", PROMPT, "--top-k", 3, "-o", "k=3").code == 2


def test_flags_that_the_given_chain_has_no_stage_for():
    done = run_cli("generate", PROMPT, "--sampler", "topp", "--top-k", 3)
    assert done.code == 2
    assert done.error == (
        "--top-k is 3, but the chain (topp) has no 'topk' stage to set; add 'topk' to it, or leave --top-k out"
    )
    done = run_cli("generate", PROMPT, "-o", "p=0.5", "--sampler", "topp", "--sampler", "topp")
    assert done.code == 2
    assert "fits 2 stages (topp.p, topp.p); write -o after the --sampler that is meant" in done.error


def test_commands():
    assert run_cli("generat").error == "no command 'generat'; did you mean 'generate'? (see nvg --help)"
    assert "there are generate, tokenize, samplers" in run_cli("frobnicate").error
    assert run_cli("--nosuch").code == run_cli("frobnicate").code == run_cli("samplers", "nosuch").code == 2
    assert "did you mean 'topp'?" in run_cli("samplers", "topq").error
    assert run_cli("tokenize") == (
        2,
        "",
        "nvg: error: there is no text: give it as an argument or pipe it into stdin\n",
    )


def test_a_prompt_that_does_not_fit_the_context(tiny_checkpoint):
    done = run_cli("generate", "#" * 70, "-m", tiny_checkpoint)
    assert done[:2] == (2, "")
    assert done.error == "the prompt has 70 tokens, the context holds 64: shorten it by 6"


@pytest.mark.parametrize("command", ["generate", "tokenize"])
def test_arguments_that_are_not_utf8(command, tiny_checkpoint):
    done = run_cli(command, os.fsdecode(b"caf\xc3"))
    assert done.code == 2
    assert "not UTF-8: byte 0xc3 at 3" in done.error
    assert "lone surrogate, U+D800, at index 1" in run_cli(command, "a\ud800").error
    assert run_cli(command, "hi", "-m", tiny_checkpoint, stdin=b"caf\xc3").code == 0, (
        "stdin is not read if there is an argument"
    )


def test_stop_that_is_not_utf8():
    assert "'--stop': not UTF-8: byte 0xff at 0" in run_cli("generate", PROMPT, "--stop", os.fsdecode(b"\xff")).error


def test_utf8_in_a_locale_that_is_not():
    asked = os.fsdecode("é".encode()) if sys.getfilesystemencoding() != "utf-8" else "\udcc3\udca9"
    assert json.loads(run_cli("tokenize", asked, "--format", "json").stdout) == json.loads(
        run_cli("tokenize", "é", "--format", "json").stdout
    )


@pytest.mark.parametrize("command", ["generate", "tokenize"])
def test_stdin_that_is_not_utf8(command):
    done = run_cli(command, stdin=b"caf\xc3")
    assert done[:2] == (2, "")
    assert done.error == "stdin is not UTF-8: byte 0xc3 at 3; convert it first (iconv -t UTF-8)"


def _shorten(path, by=1000):
    path.write_bytes(path.read_bytes()[:-by])


def _add_float64(directory):
    write_safetensors(directory / "model.safetensors", {"wte.weight": ("F64", (277, 32), np.zeros((277, 32)))})


FAULTS = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "not json": (lambda d: (d / "config.json").write_text('{"a": '), "config.json"),
    "another model": (lambda d: (d / "config.json").write_text('{"model_type": "gpt_neo"}'), "'gpt_neo'"),
    "no layers": (lambda d: write_checkpoint(d, config={"n_layer": 0}), "n_layer is 0; it must be an integer from 1"),
    "heads": (lambda d: write_checkpoint(d, config={"n_head": 5}), "n_head is 5; it must divide n_embd (32)"),
    "cut weights": (lambda d: _shorten(d / "model.safetensors"), "model.safetensors (147"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
    "missing tensor": (lambda d: write_checkpoint(d, config={"n_layer": 3}), "no tensor h.2.ln_1.weight"),
    "wrong shape": (lambda d: write_checkpoint(d, config={"n_embd": 64}), "wte.weight has shape (277, 32)"),
    "wrong dtype": (_add_float64, "F64"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "looked for tokenizer.json"),
    "not a tokenizer": (lambda d: (d / "tokenizer.json").write_text("[]"), "tokenizer.json"),
    "other vocabulary": (lambda d: write_checkpoint(d, vocab_size=100), "the tokenizer has 277 ids, the weights have"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_models(fault, tmp_path):
    damage, message = FAULTS[fault]
    directory = write_checkpoint(tmp_path / "damaged")
    damage(directory)
    done = run_cli("generate", PROMPT, "-m", directory)
    assert done[:2] == (4, "")
    assert str(directory) in done.error
    assert message in done.error


def test_no_such_model(tmp_path):
    (tmp_path / "file").touch()
    for name, part in {
        "talez": "Did you mean 'tales'?",
        "./no\nsuch": "no model './no\\nsuch': it is neither a built-in model (tales) nor the path of a directory",
        tmp_path / "file": "is a file, not a directory",
    }.items():
        done = run_cli("generate", PROMPT, "-m", name)
        assert done[:2] == (4, "")
        assert part in done.error
    assert "`nvg models pull gpt2`" in run_cli("tokenize", PROMPT, "-m", "nosuch").error


@pytest.mark.parametrize("command", ["generate", "tokenize", "perplexity", "bench", "env"])
def test_a_model_without_a_name_is_a_usage_error(command):
    done = run_cli(command, *([PROMPT] if command in ("generate", "tokenize", "perplexity") else []), "-m", "")
    assert (done.code, done.error) == (2, "--model is ''; it must be a model's name or the path of its directory")


@pytest.mark.parametrize("what", [".", "config.json"])
def test_a_model_that_cannot_be_read(what, tmp_path, monkeypatch):
    """As it is in a directory of another user; root could read it."""
    directory, stat = write_checkpoint(tmp_path / "closed"), os.stat

    def closed(path, *arguments, **options):
        if isinstance(path, os.PathLike) and path == directory / what:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", closed)
    done = run_cli("tokenize", PROMPT, "-m", directory)
    assert (done.code, done.error) == (4, f"the model {str(directory)!r} can't be read: Permission denied")


@pytest.mark.parametrize("arguments", [("generate", PROMPT), ("models",), ("env",)], ids=str)
def test_a_size_of_the_cache_that_is_none(arguments, monkeypatch):
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", "1_0")
    done = run_cli(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.error.startswith("NVG_PACKED_CACHE_GB is '1_0'; it must be a number of GB from 0 to 1000000, as 2.5 (0")


def test_a_plugin_list_with_a_name_that_is_not_installed(monkeypatch):
    monkeypatch.setenv("NVG_LOAD_PLUGINS", "nvg-nosuch")
    monkeypatch.setattr(nvg.plugins, "_registry", None)
    done = run_cli("plugins")
    assert done.code == 0
    assert done.stderr.startswith("nvg: warning: NVG_LOAD_PLUGINS names 'nvg-nosuch'")


def _raise(error):
    def command(*_, **__):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NvgError("a\n  b"), 1, "a b"),
        (ModelNotFoundError("no"), 4, "no"),
        (CheckpointError("bad"), 4, "bad"),
        (RuntimeError("odd"), 1, "RuntimeError: odd (NVG_DEBUG=1 shows where)"),
        (AssertionError(), 1, "AssertionError (NVG_DEBUG=1 shows where)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x y"), 1, "'x y': No such file"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "there is not enough memory: Unable to allocate 9 TiB"),
        (SystemExit(3), 3, None),
        (SystemExit(None), 0, None),
        (BrokenPipeError(), 0, None),
    ],
)
def test_every_error_is_one_line_and_a_code(error, code, message, monkeypatch):
    monkeypatch.setattr(cli.cli, "invoke", _raise(error))
    done = run_cli("env")
    assert (done.code, done.stdout) == (code, "")
    assert message is None or done.error == message


def test_an_interruption_is_one_line(monkeypatch):
    monkeypatch.setattr(cli.cli, "invoke", _raise(KeyboardInterrupt))
    assert run_cli("env") == (130, "", "nvg: interrupted\n")


def test_a_warning_is_one_line(monkeypatch):
    import warnings

    def command(*_):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("nvg: careful", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(cli.cli, "invoke", command)
    assert run_cli("env") == (0, "", "nvg: warning: careful\n")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("NVG_DEBUG", "1")
    done = run_cli("generate", PROMPT, "-m", "nosuch")
    assert done.code == 4
    assert done.stderr.startswith("Traceback")
    assert "ModelNotFoundError: no model 'nosuch'" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("samplers",), ("generate", PROMPT, "--max-tokens", "1")], ids=str)
def test_a_full_disk(arguments):
    stderr = io.StringIO()
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full), contextlib.redirect_stderr(stderr):
        assert cli.run(arguments) == 1
    assert stderr.getvalue() == "nvg: error: stdout can't be written: No space left on device\n"


def test_closed_streams(monkeypatch):
    stderr = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", stderr)
        assert cli.run(["samplers"]) == 1
    assert stderr.getvalue() == "nvg: error: stdout is closed; redirect it to a file or to /dev/null\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert cli.run(["samplers", "nosuch"]) == 2
        sys.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top-k", "5", "--top-k", "6"), "--top-k is given 2 times; give it once"),
        (("-o", "k=5", "-o", "k=6"), "option 'k=6' and option 'k=5' set the same, topk.k; give one"),
        (("--branch-tokens", "3"), "--branch-tokens is 3, and there is no --branches N"),
        (("--xtc-threshold", "0.2"), "--xtc-threshold is 0.2 and --xtc-probability is not given: give both"),
    ],
)
def test_what_would_do_nothing_is_a_usage_error(arguments, message):
    done = run_cli("generate", "x", *arguments)
    assert done.code == 2
    assert message in done.stderr


def test_an_option_after_a_sampler_is_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("NVG_CONFIG_DIR", str(tmp_path))
    stages = "--sampler temperature -o t=2 --sampler minp --sampler temperature -o t=0.5 -o p=0.25"
    assert run_cli("presets", "save", "mine", *stages.split()).code == 0
    shown = run_cli("presets", "show", "mine").stdout
    assert [line.split("options = ")[1] for line in shown.splitlines() if "options" in line] == [
        "{t = 2.0}},",
        "{p = 0.25}},",
        "{t = 0.5}},",
    ]
