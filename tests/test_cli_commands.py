"""The other commands: help, lists, tokenize, env, warmup, completion, and commands that plugins add."""

import json
import re
import shutil
import subprocess
import sys

import click
import pytest
from cli_runner import finish, run_cli, start_cli

import nvg.plugins
from nvg import cli
from nvg.model import runner
from nvg.params import DTYPES, KV_DTYPES
from nvg.runtime.compile_cache import CompileStep

LIGHT = """
import sys
from nvg.cli import run
assert run(sys.argv[1:]) == 0
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = loaded & {"numba", "llvmlite", "numpy", "safetensors", "regex", "tqdm", "pluggy", "a_command"}
print(sorted(heavy | (sys.modules.keys() & {"importlib.metadata"})))
"""
COMMANDS = [
    "generate",
    "tokenize",
    "samplers",
    "presets",
    "tokenizers",
    "plugins",
    "warmup",
    "env",
    "completion",
    "bench",
    "perplexity",
]


def last_line(arguments, environment):
    command = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()[-1]


@pytest.mark.skipif(cli._may_have_plugin_commands(), reason="an installed plugin adds commands")
@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]], ids=str)
def test_help_imports_next_to_nothing(arguments):
    assert last_line(arguments, None) == "[]"


def test_help_imports_no_plugin(install_distribution, monkeypatch):
    site = install_distribution("a-command", "nvg.commands", {"extra": "nosuch"}, "")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.delenv("NVG_LOAD_PLUGINS", raising=False)
    assert last_line(["--help"], None) == "['importlib.metadata', 'pluggy']"


def test_help_lists_every_command():
    done = run_cli("--help")
    assert (done.code, done.stderr) == (0, "")
    for name, text in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text in done.stdout
    assert run_cli() == done == run_cli("-h")
    assert list(cli.COMMANDS)[: len(COMMANDS)] == COMMANDS


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_that_fits_a_terminal(name):
    done = run_cli(name, "--help")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: nvg {name} ")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_every_option_of_generate_is_explained():
    command = cli.cli.get_command(click.Context(cli.cli), "generate")
    for param in command.params:
        assert isinstance(param, click.Argument) or param.help, param.name
    text = " ".join(run_cli("generate", "--help").stdout.split())
    for shown in ("[default: tales]", "[default: 64]", "[default: 1]", "[default: drawn]", "0 to 2^64 - 1"):
        assert shown in text


def test_version():
    assert run_cli("--version") == (0, f"nvg {nvg.__version__}\n", "")


def test_samplers():
    lines = run_cli("samplers").stdout.splitlines()
    assert lines[0].split() == ["NAME", "OPTIONS", "WHAT", "IT", "DOES", "FROM"]
    (topp,) = (line for line in lines if line.startswith("topp "))
    assert topp.split()[1] == "p=0.9"
    assert "Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): keep the smallest set" in topp
    assert topp.endswith("  nvg (built in)")
    (temperature,) = (line for line in lines if line.startswith("temperature "))
    assert temperature.split()[1] == "t=1.0"


def test_one_sampler():
    done = run_cli("samplers", "topp")
    assert done.code == 0
    assert done.stdout.startswith("topp  (nvg (built in), nvg.sampling.topp:TopP)\n\nNucleus sampling")
    assert "Holtzman et al. 2019, arXiv:1904.09751" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "Options (-o NAME=VALUE):",
        "  p  float  default 0.9  above 0 and at most 1; 1 means all",
    ]


def test_a_sampler_in_a_file_without_docstring(tmp_path):
    source = "from dataclasses import dataclass\n@dataclass\nclass Own:\n  k: int\n  def apply(self, *_): ...\n"
    (tmp_path / "own.py").write_text(source)
    done = run_cli("samplers", f"{tmp_path}/own.py:Own")
    assert done.code == 0
    assert done.stdout.startswith(f"Own  ({tmp_path}/own.py, ")
    assert done.stdout.endswith("\n\nOptions (-o NAME=VALUE):\n  k  int  required\n")


def test_tokenizers():
    lines = run_cli("tokenizers").stdout.splitlines()
    assert lines[0].split() == ["NAME", "WHAT", "IT", "IS", "FROM"]
    own = [" ".join(line.split()) for line in lines[1:] if line.endswith("  nvg (built in)")]
    assert [line.split()[0] for line in own] == ["bytes", "gpt2"]
    assert own[0] == "bytes Ids 0 .. 255 are the bytes of UTF-8; id 256 is `<|endoftext|>` nvg (built in)"


def test_plugins():
    done = run_cli("plugins")
    assert (done.code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["FROM", "KIND", "NAME", "WHERE"]
    assert ["nvg", "(built", "in)", "sampler", "topp", "nvg.sampling.topp:TopP"] in [line.split() for line in lines]


def test_a_broken_plugin_breaks_nothing_and_is_named(install_distribution, monkeypatch):
    install_distribution("nvg-broken", "nvg", {"broken": "hooks"}, "import nosuch_module")
    monkeypatch.delenv("NVG_LOAD_PLUGINS", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(nvg.plugins, "_registry", None)
        for command in ("plugins", "samplers", "tokenizers"):
            done = run_cli(command)
            assert done.code == 0
            assert "nvg: warning: plugin 'broken' of nvg-broken 1.5 is not loaded: ModuleNotFoundError" in done.stderr


def test_tokenize(tiny_checkpoint):
    done = run_cli("tokenize", "the é<|endoftext|>", "-m", tiny_checkpoint)
    assert done.code == 0
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert rows[:4] == [["116", "'t'"], ["256", "'he'"], ["32", "' '"], ["195", "b'\\xc3'"]]
    assert done.stderr == f"{len(rows)} tokens, 18 characters\n"
    special = run_cli("tokenize", "the<|endoftext|>", "-m", tiny_checkpoint, "--allow-special").stdout
    assert special.splitlines()[-1].split() == ["276", "'<|endoftext|>'"]


def test_tokenize_stdin_as_json(tiny_checkpoint):
    done = run_cli("tokenize", "-m", tiny_checkpoint, "--format", "json", stdin=b"the\n")
    assert json.loads(done.stdout) == {"model": str(tiny_checkpoint), "token_ids": [116, 256], "tokens": ["t", "he"]}
    assert json.loads(run_cli("tokenize", "", "--format", "json").stdout)["token_ids"] == []
    assert run_cli("tokenize", "é", "--tokenizer", "bytes", encoding="ascii").code == 0


def test_env_and_warmup(compiled_kernels):
    facts = json.loads(run_cli("env", "--format", "json").stdout)
    assert facts["nvg"] == nvg.__version__
    assert re.match(r"(\d+) of \1 kernels", facts["compiled"])
    assert "numba" in facts
    assert facts["kv cache"].startswith("tales, float32: 1024 blocks of 32 tokens, 403 MB: 64 of at most 64 sequences")
    asked = ("--dtype", "int8", "--kv-memory", "100Mi")
    assert "533 blocks of 32 tokens, 105 MB: 33 of at most 64" in run_cli("env", *asked).stdout
    text = run_cli("env").stdout
    assert all(line.startswith(name) for name, line in zip(facts, text.splitlines(), strict=True))
    done = run_cli("warmup")
    assert done == (0, facts["compile cache"] + "\n", "nvg: all kernels are compiled already\n")


def test_env_makes_no_directory(compiled_kernels, monkeypatch, tmp_path):
    from nvg.runtime.kernel_store import KernelStore

    monkeypatch.setenv("NVG_CACHE_DIR", str(tmp_path / "cache"))
    fresh = KernelStore()
    for module in ("kernel_store", "compile_cache"):
        monkeypatch.setattr(f"nvg.runtime.{module}.store", fresh)
    facts = json.loads(run_cli("env", "--format", "json").stdout)
    assert facts["compile cache"].startswith(str(tmp_path / "cache"))
    assert facts["compiled size"] == "0.0 MB"
    assert not (tmp_path / "cache").exists()


def test_env_counts_the_kernels_that_are_asked_for(compiled_kernels, monkeypatch):
    asked = []
    compile_steps = runner.compile_steps
    monkeypatch.setattr(runner, "compile_steps", lambda *dtypes: asked.append(dtypes) or compile_steps())
    run_cli("env", "--dtype", "int4", "--kv-dtype", "int8")
    assert asked == [("int4", "int8")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [("float32", None)]),
        (("--dtype", "int8", "--dtype", "int4"), [("int8", None), ("int4", None)]),
        (("--kv-dtype", "int8"), [("float32", "int8")]),
        (("--dtype", "all"), [(dtype, kv_dtype) for dtype in DTYPES for kv_dtype in KV_DTYPES]),
        (("--dtype", "all", "--kv-dtype", "int8"), [(dtype, "int8") for dtype in DTYPES]),
        (("--dtype", "int4", "--kv-dtype", "all"), [("int4", kv_dtype) for kv_dtype in KV_DTYPES]),
    ],
    ids=str,
)
def test_what_warmup_compiles(arguments, expected, monkeypatch, compiled_kernels):
    compiled = []

    def compile_steps(*dtypes):
        return [CompileStep(str(dtypes), lambda: False, lambda: compiled.append(dtypes))]

    monkeypatch.setattr(runner, "compile_steps", compile_steps)
    assert run_cli("warmup", *arguments).code == 0
    assert compiled[: len(expected)] == expected


def test_warmup_fails_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").touch()
    done = finish(start_cli("warmup", "--dtype", "all", env={"NVG_CACHE_DIR": str(tmp_path / "file")}))
    assert (done.code, done.stdout) == (1, "")
    assert done.error.startswith("compiled kernels can't be kept: the compile cache can't be used ([Errno 20]")


EXTRA = """
import click

@click.command()
@click.argument("word")
def command(word):
    click.echo(word)
    return 5

no_command = 3
"""


def test_commands_of_plugins(install_distribution, monkeypatch):
    points = {"extra": "command", "odd": "no_command", "gone": "nosuch", "env": "command"}
    install_distribution("Nvg-Extra", "nvg.commands", points, EXTRA)
    monkeypatch.delenv("NVG_LOAD_PLUGINS", raising=False)
    listing = run_cli("--help").stdout
    assert "  extra       (from Nvg-Extra)\n" in listing
    assert listing.count("  env ") == 1, "a built-in command is never replaced"
    listed = [line.split() for line in run_cli("plugins").stdout.splitlines()]
    assert ["Nvg-Extra", "1.5", "command", "extra", "nvg_extra:command"] in listed
    assert run_cli("extra", "hello") == (0, "hello\n", "")
    assert run_cli("env", "--help").stdout.startswith("Usage: nvg env [OPTIONS]\n")
    assert run_cli("odd").error == "the command 'odd' of Nvg-Extra is no click command but 3"
    assert run_cli("gone").error.startswith("the command 'gone' of Nvg-Extra could not be loaded: AttributeError")
    assert run_cli("extr").error == "no command 'extr'; did you mean 'extra'? (see nvg --help)"
    monkeypatch.setenv("NVG_LOAD_PLUGINS", "")
    assert "extra" not in run_cli("--help").stdout


def complete(monkeypatch, words, current, shell="zsh"):
    with monkeypatch.context() as patch:
        patch.setenv("_NVG_COMPLETE", f"{shell}_complete")
        patch.setenv("COMP_WORDS", words)
        patch.setenv("COMP_CWORD", str(current))
        return run_cli().stdout


def test_completion_of_names_and_options(monkeypatch):
    assert complete(monkeypatch, "nvg generate --sampler te", 3).split() == ["plain", "temperature", "_"]
    assert complete(monkeypatch, "nvg generate --tokenizer by", 3).split() == ["plain", "bytes", "_"]
    assert complete(monkeypatch, "nvg generate --tokenizer gp", 3).split() == ["plain", "gpt2", "_"]
    assert complete(monkeypatch, "nvg samplers gree", 2).split() == ["plain", "greedy", "_"]
    assert complete(monkeypatch, "nvg generate -m ta", 3).startswith("dir\nta\n_\nplain\ntales\n")
    assert [line.split("\t")[0] for line in complete(monkeypatch, "nvg generate", "--top-", "fish").splitlines()] == [
        "plain,--top-n-sigma",
        "plain,--top-k",
        "plain,--top-p",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, monkeypatch):
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("click asks bash for its version")
    script = run_cli("completion", shell).stdout
    assert f"_NVG_COMPLETE={shell}_complete" in script
    assert run_cli("completion").error.startswith("Missing argument 'bash|zsh|fish'. Choose from: bash, zsh, fish")


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_completion_in_bash(tmp_path, monkeypatch):
    (tmp_path / "nvg").write_text(f'#!/bin/sh\nexec {sys.executable} -m nvg "$@"\n')
    (tmp_path / "nvg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program = """
        eval "$(nvg completion bash)"
        COMP_WORDS=(nvg generate --sampler te); COMP_CWORD=3
        _nvg_completion nvg
        echo "${COMPREPLY[*]}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "temperature\n"
