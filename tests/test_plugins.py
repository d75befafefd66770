import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nvg.errors import ParameterError, PluginError, UnknownNameError
from nvg.hookspecs import hookimpl
from nvg.plugins import BUILT_IN, Registry, file_sampler, load_sampler, plugin_entry_points, registry, sampler_entry
from nvg.sampling.topp import TopP

ROOT = Path(__file__).resolve().parents[1]

SAMPLER = """
from dataclasses import dataclass
from nvg import hookimpl

@dataclass(frozen=True)
class Flat:
    def apply(self, logits, token_ids, state):
        logits[:] = 0

@hookimpl
def nvg_register_samplers(register):
    register("{name}", Flat)
"""


def module(**attributes) -> ModuleType:
    made = ModuleType("mine")
    vars(made).update(attributes)
    return made


def plugin(**hooks) -> ModuleType:
    """A throw-away plugin: hook name -> [(name, target), ...]."""

    def implementation(pairs):
        def hook(register):
            for name, target in pairs:
                register(name, target)

        return hookimpl(hook)

    return module(**{name: implementation(pairs) for name, pairs in hooks.items()})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(distribution, source): a distribution with one module, as pip leaves it behind."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution: str, source: str, group: str = "nvg") -> None:
        module = distribution.lower().replace("-", "_").replace(".", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\nthe-sampler = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_built_ins_come_through_the_hooks():
    found = Registry("")
    assert {"greedy", "minp", "temperature", "topk", "topp"} <= set(found.samplers.names())
    assert found.tokenizers.names() == ["bytes", "gpt2"]
    assert found.models.names() == ["gpt2"]
    entry = found.samplers["topp"]
    assert (entry.name, entry.location, entry.origin) == ("topp", "nvg.sampling.topp:TopP", BUILT_IN)
    assert found.samplers.load("topp") is TopP
    assert found.warnings() == []


@pytest.mark.parametrize("kind", ["samplers", "tokenizers", "models"])
def test_every_built_in_loads(kind):
    names = getattr(Registry(""), kind)
    for name in names:
        assert names.load(name).__doc__


def test_listing_imports_no_target():
    program = (
        "import sys; from nvg.plugins import registry; "
        "found = registry().samplers.entries() + registry().tokenizers.entries() + registry().models.entries(); "
        "assert found; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('numpy', 'numba', 'click')"
        " or name.startswith(('nvg.sampling', 'nvg.tokenizers', 'nvg.model'))])"
    )
    environment = os.environ | {"NVG_LOAD_PLUGINS": ""}  # a plugin's own module may import what it likes
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_there_is_one_registry():
    assert registry() is registry()


def test_a_throw_away_plugin():
    found = Registry("")
    found.register(
        plugin(nvg_register_samplers=[("flat", TopP)], nvg_register_models=[("gptx", "some.where:X")]), "mine"
    )
    assert found.samplers.load("flat") is TopP
    assert found.samplers["flat"].origin == "mine"
    assert found.models["gptx"].location == "some.where:X"
    assert "flat" in found.samplers
    found.unregister("mine")
    assert "flat" not in found.samplers
    with pytest.raises(UnknownNameError, match="no plugin is called 'mine'"):
        found.unregister("mine")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (module(), "it implements no hook; mark its functions with @nvg.hookimpl"),
        (plugin(nvg_register_sampler=[]), "unknown hook 'nvg_register_sampler'"),
        (plugin(nvg_register_samplers=[("a b", TopP)]), "it registers a sampler as 'a b'; a name is letters"),
        (plugin(nvg_register_samplers=[("ok", TopP), ("a", "topp")]), "at 'topp'; that must be 'package.module:Name'"),
        (module(nvg_register_samplers=hookimpl(lambda registry: None)), "registry"),
        (module(nvg_register_samplers=hookimpl(lambda: 1 / 0)), "ZeroDivisionError: division by zero"),
    ],
)
def test_an_unsound_plugin_registers_nothing(broken, reason):
    found = Registry("")
    before = found.samplers.entries()
    with pytest.raises(PluginError, match="plugin 'mine' of mine is not loaded: ") as caught:
        found.register(broken, "mine")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert found.samplers.entries() == before
    found.register(plugin(nvg_register_samplers=[("fine", TopP)]), "mine")
    assert "fine" in found.samplers


def test_the_same_plugin_twice():
    found = Registry("")
    mine = plugin(nvg_register_samplers=[("flat", TopP)])
    found.register(mine, "mine")
    for again, name in ((mine, "other"), (plugin(nvg_register_samplers=[]), "mine")):
        with pytest.raises(PluginError, match="registered already"):
            found.register(again, name)
    assert found.samplers.load("flat") is TopP


def test_unknown_names_list_what_exists_and_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        Registry("").samplers.load("TopP")
    known = ", ".join(Registry("").samplers.names())
    assert str(caught.value) == f"no sampler is called 'TopP'; did you mean 'topp'? There are: {known}"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (
            "nowhere.at_all:X",
            "could not be imported from nowhere.at_all:X: ModuleNotFoundError: ",
        ),
        ("nvg.sampling.topp:TopQ", "could not be imported from nvg.sampling.topp:TopQ: AttributeError: "),
        ("nvg.sampling.topp:nucleus", "is no sampler: nvg.sampling.topp:nucleus has no method apply()"),
    ],
)
def test_a_target_that_does_not_load(target, reason):
    found = Registry("")
    found.register(plugin(nvg_register_samplers=[("x", target)]), "mine", "nvg-mine 2.0")
    with pytest.raises(PluginError) as caught:
        found.samplers.load("x")
    assert str(caught.value).startswith("sampler 'x' of nvg-mine 2.0 ")
    assert reason in str(caught.value)


def test_installed_distributions_are_found(install):
    install("nvg-Flat", SAMPLER.format(name="flat"))
    found = Registry(None)
    assert found.samplers["flat"].origin == "nvg-Flat 1.5"
    assert found.samplers["flat"].location == "nvg_flat:Flat"
    assert found.samplers.load("flat").__name__ == "Flat"


def test_the_variable_restricts_what_is_loaded(install, monkeypatch):
    install("nvg-one", SAMPLER.format(name="one"))
    install("nvg.two", SAMPLER.format(name="two"))
    everything = set(Registry(None).samplers)
    assert {"one", "two", "topp"} <= everything
    assert not {"one", "two"} & set(Registry("").samplers)
    assert not {"one", "two"} & set(Registry(" , ").samplers)
    only = Registry("NVG_Two, ")
    assert "two" in only.samplers
    assert "one" not in only.samplers
    assert only.warnings() == []
    assert [point.value for point in plugin_entry_points("nvg", "nvg-one")] == ["nvg_one"]


def test_the_variable_may_name_what_is_not_there(install):
    install("nvg-commands-only", "", group="nvg.commands")
    found = Registry("nvg-absent,nvg-commands-only")
    (broken,) = found.broken
    assert broken.reason == (
        "NVG_LOAD_PLUGINS names 'nvg-absent', but no distribution of that name with an nvg plugin is installed"
    )


def test_a_broken_distribution_breaks_nothing_else(install):
    install("nvg-broken", "import torch_that_is_not_installed")
    install("nvg-exits", "raise SystemExit('goodbye')")
    install("nvg-hookless", "x = 1")
    install("nvg-works", SAMPLER.format(name="works"))
    found = Registry("nvg-broken,nvg-exits,nvg-hookless,nvg-works")
    assert found.samplers.load("works")
    assert found.samplers.load("topp") is TopP
    assert [(broken.name, broken.origin) for broken in found.broken] == [
        ("the-sampler", f"nvg-{name} 1.5") for name in ("broken", "exits", "hookless")
    ]
    assert found.warnings() == [
        "plugin 'the-sampler' of nvg-broken 1.5 is not loaded: ModuleNotFoundError: No module named "
        "'torch_that_is_not_installed'",
        "plugin 'the-sampler' of nvg-exits 1.5 is not loaded: SystemExit: goodbye",
        "plugin 'the-sampler' of nvg-hookless 1.5 is not loaded: it implements no hook; mark its "
        "functions with @nvg.hookimpl",
    ]
    with pytest.raises(UnknownNameError, match=r"\(3 broken plugin\(s\) left out; see `nvg plugins`\)"):
        found.samplers.load("broken")


def test_a_name_registered_twice_is_an_error_when_used(install):
    install("nvg-one", SAMPLER.format(name="twin"))
    install("nvg-two", SAMPLER.format(name="twin"))
    install("nvg-three", SAMPLER.format(name="topp"))
    found = Registry("nvg-one,nvg-two,nvg-three")
    line = (
        "sampler 'twin' is registered twice, by nvg-one 1.5 (nvg_one:Flat) and nvg-two 1.5 (nvg_two:Flat); "
        "uninstall one, or leave it out of NVG_LOAD_PLUGINS"
    )
    with pytest.raises(PluginError) as caught:
        found.samplers.load("twin")
    assert str(caught.value) == line
    with pytest.raises(PluginError, match=r"by nvg \(built in\) \(nvg.sampling.topp:TopP\) and nvg-three 1.5"):
        found.samplers.load("topp")
    assert found.samplers.load("topk")
    assert line in found.warnings()
    assert [entry.origin for entry in found.samplers.entries() if entry.name == "twin"] == [
        "nvg-one 1.5",
        "nvg-two 1.5",
    ]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from __future__ import annotations\n" + SAMPLER.format(name="flat") + "\nLIMIT = 3\n")
    return path


def test_a_sampler_in_a_file(file):
    spec_class = load_sampler(f"{file}:Flat")
    assert spec_class.__name__ == "Flat"
    assert load_sampler(f"{file}:Flat") is spec_class
    entry = sampler_entry(f"{file}:Flat")
    assert (entry.name, entry.origin) == ("Flat", str(file))
    file.write_text(file.read_text() + "\n# edited\n")
    assert load_sampler(f"{file}:Flat") is not spec_class
    assert load_sampler("topp") is TopP


def test_a_file_s_module_is_the_one_that_imports_it(tmp_path, monkeypatch):
    """What numba caches beside a file names its module."""
    package = tmp_path / "kit_of_mine"
    package.mkdir()
    places = [tmp_path / "one_of_mine.py", package / "part.py", tmp_path / "json.py", tmp_path / "pytest.py"]
    (package / "__init__.py").touch()
    for path in places:
        path.write_text(SAMPLER.format(name="flat"))
    again = tmp_path / "other" / "one_of_mine.py"
    again.parent.mkdir()
    again.write_text(SAMPLER.format(name="flat"))
    real = sys.modules["json"], sys.modules["pytest"]
    names = [load_sampler(f"{path}:Flat").__module__ for path in [*places, again]]
    try:
        assert names[:2] == ["one_of_mine", "kit_of_mine.part"]
        assert all(name.startswith("nvg_file_") for name in names[2:])
        assert (sys.modules["json"], sys.modules["pytest"]) == real
        assert sampler_entry(f"{places[0]}:Flat").location == f"{places[0]}:Flat"
        monkeypatch.syspath_prepend(tmp_path)
        assert importlib.import_module("one_of_mine").Flat is load_sampler(f"{places[0]}:Flat")
        assert importlib.import_module("kit_of_mine.part").Flat is load_sampler(f"{places[1]}:Flat")
    finally:
        for name in ("kit_of_mine", *names):
            sys.modules.pop(name, None)


def test_a_file_does_not_take_the_place_of_what_could_be_imported(tmp_path, monkeypatch):
    for directory in ("installed", "mine"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "taken_name.py").write_text(SAMPLER.format(name="flat"))
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert load_sampler(f"{tmp_path}/mine/taken_name.py:Flat").__module__.startswith("nvg_file_")
    assert "taken_name" not in sys.modules


def test_faults_of_a_file(file):
    with pytest.raises(ParameterError, match=r"sampler 'nowhere/x.py:Flat': there is no file 'nowhere/x.py'"):
        load_sampler("nowhere/x.py:Flat")
    with pytest.raises(UnknownNameError, match=r"mine.py is called 'Flatt'; did you mean 'Flat'\? There are: Flat$"):
        load_sampler(f"{file}:Flatt")
    with pytest.raises(ParameterError, match=r"say which class of the file is meant: .*mine.py:Flat$"):
        load_sampler(str(file))
    with pytest.raises(PluginError, match=r"sampler 'LIMIT' of .*mine.py is no sampler: .* has no method apply\(\)"):
        load_sampler(f"{file}:LIMIT")
    with pytest.raises(ParameterError, match=r"sampler 'topp' is no file's; write path/to/file.py:Name"):
        file_sampler("topp")
    for source, cause in (("import nowhere_at_all", "ModuleNotFoundError: No module"), ("def f(:", "SyntaxError: ")):
        file.write_text(source)
        for _ in range(2):
            with pytest.raises(PluginError, match=rf"sampler file '.*mine.py' failed: {cause}"):
                load_sampler(f"{file}:Flat")
