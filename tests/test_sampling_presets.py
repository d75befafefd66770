import json
from dataclasses import dataclass
from types import ModuleType

import pytest
from cli_runner import run_cli

from nvg import hookimpl
from nvg.errors import ParameterError, PluginError, UnknownNameError
from nvg.params import SamplingParams
from nvg.plugins import Registry
from nvg.sampling.compose import DEFAULT_CHAIN, resolve
from nvg.sampling.presets import find_preset, preset_names, remove_preset, save_preset, to_toml

BUILT_IN = ["balanced", "precise", "creative", "fresh", "even", "greedy"]
ODD_TEXT = 'quotes " and \\ tab\t line\nDEL \x7f é 🦊'


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("NVG_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NVG_LOAD_PLUGINS", "")
    return tmp_path / "config"


def stages(*sampler):
    return resolve(SamplingParams(sampler=sampler))


def test_built_in_presets_are_chains_with_a_description():
    assert preset_names() == BUILT_IN
    for name in BUILT_IN:
        assert find_preset(name).stages
        assert find_preset(name).description.endswith(".")
    assert find_preset("balanced").stages == resolve(SamplingParams(), DEFAULT_CHAIN)


def test_built_in_presets_are_of_nvg_s_own_samplers_where_a_plugin_claims_their_names(monkeypatch):
    def claim(register):
        for name in ("topk", "minp", "greedy", "creative"):
            register(name, "nvg.sampling.minp:MinP")

    plugin = ModuleType("claims")
    plugin.nvg_register_samplers = hookimpl(claim)
    names = Registry("")
    names.register(plugin, "claims")
    before = {name: find_preset(name).stages for name in BUILT_IN}
    monkeypatch.setattr("nvg.plugins._registry", names)
    assert {name: find_preset(name).stages for name in BUILT_IN} == before
    assert [stage.origin for stage in stages("creative")] == ["claims"], "a sampler may have a preset's name"
    with pytest.raises(PluginError, match="'topk' is registered twice"):
        stages("topk")


def test_a_saved_preset_comes_back_whole(config):
    chain = stages(
        ("banned", {"words": [ODD_TEXT, "b"], "sequences": [[1, 2], [3]]}),
        ("logitbias", {"ids": {5: -1e-7, 7: float("-inf")}, "words": {"a b": 2.0, "": 1e22}}),
        ("dry", {"breakers": ["\n", '"']}),
        "greedy",
    )
    path = save_preset("mine-1", ODD_TEXT, chain)
    assert path == config / "presets" / "mine-1.toml"
    assert preset_names() == [*BUILT_IN, "mine-1"]
    found = find_preset("mine-1")
    assert (found.description, found.stages, found.origin) == (ODD_TEXT, chain, str(path))
    assert to_toml(found.description, found.stages) == path.read_text(encoding="utf-8")
    assert find_preset(str(path)).stages == chain
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"
    assert remove_preset("mine-1") == path
    assert preset_names() == BUILT_IN


def test_the_empty_chain_and_one_s_own_toml(config, tmp_path):
    save_preset("plain", "", ())
    assert find_preset("plain").stages == ()
    file = tmp_path / "own.toml"
    file.write_text('sampler = "greedy"\n')
    assert find_preset(str(file)).stages == stages("greedy")
    file.write_text('sampler = ["topk", {name = "topp", options = {p = 1}}]\n')
    assert find_preset(str(file)).stages == stages("topk", ("topp", {"p": 1.0}))


def test_a_sampler_s_file_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "lucky.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Lucky:\n    chance: float = 0.1\n"
        "    def apply(self, logits, token_ids, state): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    chain = stages(("lucky.py:Lucky", {"chance": 0.5}))
    save_preset("lucky", "", chain)
    (tmp_path / "own.toml").write_text('sampler = [{name = "lucky.py:Lucky", options = {chance = 0.5}}]')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("lucky", "../own.toml"):
        (stage,) = find_preset(name).stages
        assert (stage.name, stage.spec.chance) == ("Lucky", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampler = [", "can't be read: "),
        (b"sampler = ['\xff']", "can't be read: "),
        ('smpler = ["topk"]', r"no key of a preset \(.*\) is called 'smpler'; did you mean 'sampler'\?"),
        ('description = "x"', r"needs sampler = \[\.\.\.\]"),
        ("sampler = 3", r"needs sampler = \[\.\.\.\]"),
        ('description = 3\nsampler = ["topk"]', "a description is text"),
        ('sampler = ["tpok"]', r"preset 'bad' \(.*bad.toml\): no sampler is called 'tpok'; did you mean 'topk'"),
        ('sampler = [{name = "topk", options = {kk = 3}}]', "no option of sampler 'topk' is called 'kk'"),
        ('sampler = [{name = "topk", options = {k = "3"}}]', "sampler 'topk': k is '3'; it must be int"),
        ('sampler = [{name = "topk", k = 3}]', "an item of a chain is a name"),
    ],
)
def test_bad_files(text, message, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError, match=message):
        _ = find_preset(str(file)).stages


def test_bad_names():
    with pytest.raises(UnknownNameError, match=r"no preset is called 'creativ'; did you mean 'creative'\? There are: "):
        find_preset("creativ")
    with pytest.raises(ParameterError, match=r"there is no preset file '.*none.toml'"):
        find_preset("none.toml")
    for name in ("", "../x", "a/b", "a.b", "-x"):
        with pytest.raises(ParameterError, match="is not letters, digits"):
            save_preset(name, "", ())
    with pytest.raises(ParameterError, match="'precise' is built in"):
        save_preset("precise", "", (), replace=True)
    with pytest.raises(UnknownNameError, match="no preset of your own is called 'precise'"):
        remove_preset("precise")
    save_preset("mine", "first", ())
    with pytest.raises(ParameterError, match=r"'mine' exists \(.*\); --replace it"):
        save_preset("mine", "second", ())
    assert find_preset("mine").description == "first"
    save_preset("mine", "second", (), replace=True)
    assert find_preset("mine").description == "second"


def test_an_object_without_a_name_can_t_be_saved():
    class Own:
        def apply(self, logits, token_ids, state): ...

    @dataclass(frozen=True)
    class Numbers:
        set: object = frozenset()

        def apply(self, logits, token_ids, state): ...

    with pytest.raises(ParameterError, match="'Own' is an object without options; a preset needs a sampler's name"):
        to_toml("", stages(Own()))
    with pytest.raises(ParameterError, match="can't be written to a preset"):
        to_toml("", stages(Numbers()))


def test_the_command_lists_shows_saves_and_removes(config):
    saved = run_cli("presets", "save", "mine", "--preset", "creative", "--temperature", 1.2, "-o", "minp.p=0.2")
    assert saved == (0, "", f"nvg: saved as {config / 'presets' / 'mine.toml'}\n")
    listing = run_cli("presets").stdout.splitlines()
    assert [line.split()[0] for line in listing[1:]] == [*BUILT_IN, "mine"]
    assert listing[-1].endswith(str(config / "presets" / "mine.toml"))
    shown = run_cli("presets", "show", "mine").stdout
    assert shown == (config / "presets" / "mine.toml").read_text()
    assert "{p = 0.2}" in shown
    assert "{t = 1.2}" in shown
    (config / "presets" / "broken.toml").write_text("sampler = [")
    listed = run_cli("presets", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [*BUILT_IN, "mine"]
    assert "broken.toml" in listed.stderr
    assert run_cli("presets", "rm", "mine").stdout == f"removed {config / 'presets' / 'mine.toml'}\n"
    assert run_cli("presets", "rm", "mine").code == 2


def test_generate_takes_a_preset_and_changes_it():
    def text(*arguments):
        done = run_cli("generate", "The king", "--max-tokens", 6, "--seed", 1, *arguments)
        assert done.code == 0, done.error
        return done.stdout

    greedy = text("--preset", "greedy")
    assert greedy == text("--sampler", "greedy") == text("--preset", "balanced", "--top-k", 1)
    assert text("--preset", "balanced") == text()
    both = run_cli("generate", "x", "--preset", "greedy", "--sampler", "topk")
    assert (both.code, both.error) == (2, "--preset and --sampler both give a chain; give one of them")
    wrong = run_cli("generate", "x", "--preset", "greedyy")
    assert wrong.code == 2
    assert "did you mean 'greedy'?" in wrong.error


def test_files_that_no_name_leads_to_are_told(config):
    directory = config / "presets"
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("greedy", "a b", "fine"):
        (directory / f"{name}.toml").write_text('description = "x"\nsampler = ["topk"]\n')
    done = run_cli("presets", "list", "--format", "json")
    assert f"preset file {str(directory / 'a b.toml')!r} is left out" in done.stderr
    assert f"preset file {str(directory / 'greedy.toml')!r} has a built-in preset's name" in done.stderr
    records = {record["name"]: record for record in json.loads(done.stdout)}
    assert len(records) == len(json.loads(done.stdout))
    assert (records["greedy"]["origin"], records["fine"]["chain"]) == ("built in", ["topk"])
