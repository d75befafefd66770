"""`nvg models pull` against a hub on loopback, with huggingface_hub itself between the two."""

import json
import sys
from pathlib import Path

import pytest
from checkpoints import TALES
from cli_runner import finish, run_cli, start_cli
from hub_server import Hub, serve

huggingface_hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.filterwarnings("default")  # of the library and of what it needs
COMMIT, OTHER = "a" * 40, "b" * 40
FILES = {
    **{name: (TALES / name).read_bytes() for name in ("config.json", "generation_config.json", "tokenizer.json")},
    "vocab.json": b"{}",
    "README.md": b"#",
    "pytorch_model.bin": b"pickle",
    "onnx.safetensors": b"x",
    "model.safetensors": bytes(range(256)) * 8000,
}
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    server = serve(hub)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NVG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what is kept of a cut answer
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
    hub.add("openai-community/gpt2", FILES)
    yield hub
    server.shutdown()
    server.server_close()


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_a_model_by_its_short_name_and_only_the_files_that_are_read(hub, tmp_path):
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 0, done.stderr
    directory = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / COMMIT
    assert done.stdout == f"{directory}\n"
    assert names(directory) == NEEDED
    assert {name: (directory / name).read_bytes() for name in NEEDED} == {name: FILES[name] for name in NEEDED}
    assert "nvg: config.json: 0.8 kB\n" in done.stderr
    assert "nvg: model.safetensors: 2.0 MB\n" in done.stderr
    for name in ("gpt2", "openai-community/gpt2", "gpt2@main", f"gpt2@{COMMIT}"):
        assert run_cli("tokenize", "-m", name, "a king").code == 0


def test_what_is_there_is_not_downloaded_again(hub):
    assert run_cli("models", "pull", "gpt2").code == 0
    hub.requests.clear()
    assert run_cli("models", "pull", "gpt2").code == 0
    assert hub.asked_for("GET") == []
    assert hub.asked_for("HEAD") == ["config.json", "tokenizer_config.json", "chat_template.jinja"]


def test_a_revision_and_a_branch_that_moved(hub):
    hub.add("org/tale", FILES, OTHER, "v1.0")
    hub.add("org/tale", {**FILES, "model.safetensors": b"new"}, COMMIT, "main")
    assert run_cli("models", "pull", "org/tale@v1.0").stdout.rstrip().endswith(OTHER)
    assert run_cli("models", "pull", "org/tale").stdout.rstrip().endswith(COMMIT)
    assert run_cli("models", "pull", f"org/tale@{OTHER}").code == 0
    listed = json.loads(run_cli("models", "list", "--format", "json").stdout)["models"][1:]
    assert [(model["model"], model["kind"]) for model in listed] == [("org/tale", "hub"), ("org/tale@v1.0", "hub")]
    assert listed[1]["bytes"] == sum(len(FILES[name]) for name in NEEDED)
    assert listed[1]["path"].endswith(OTHER)
    assert [model["complete"] for model in listed] == [True, True]
    hub.refs["org/tale"]["main"] = OTHER
    assert run_cli("models", "pull", "org/tale").stdout.rstrip().endswith(OTHER)


def test_a_cut_connection_is_taken_up_where_it_broke(hub):
    hub.cuts = 2
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 0, done.stderr
    first, *others = first_bytes(hub)
    half = len(FILES["model.safetensors"]) // 2
    assert first == 0
    assert len(others) == 2
    assert half - (1 << 16) <= others[0] <= half <= half * 5 // 4 <= others[1]
    model = Path(done.stdout.rstrip()) / "model.safetensors"
    assert model.read_bytes() == FILES["model.safetensors"]


def test_whole_files_stay_when_the_hub_goes_away(hub):
    hub.cuts = 1000
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 1
    assert "model.safetensors of gpt2 could not be downloaded: " in done.stderr.splitlines()[-1]
    assert done.stderr.endswith("the same command again resumes\n")
    done = run_cli("generate", "-m", "gpt2", "x")
    assert done.code == 4
    assert "without its weights, or some of them" in done.error
    assert done.error.endswith("`nvg models pull gpt2` downloads what is missing")
    hub.cuts = 0
    hub.requests.clear()
    assert run_cli("models", "pull", "gpt2").code == 0
    assert set(hub.asked_for("GET")) == {"model.safetensors"}


def first_bytes(hub):
    """From which byte on each request for weights was."""
    wanted = [wanted for method, path, wanted in hub.requests if method == "GET" and path.startswith("/store/")]
    return [int(each.removeprefix("bytes=").removesuffix("-")) if each else 0 for each in wanted]


@pytest.fixture
def partly(hub, tmp_path):
    """A hub of a model whose weights are there up to byte 2^20; the file of those."""
    hub.cuts = 1000
    assert run_cli("models", "pull", "gpt2").code == 1
    hub.cuts = 0
    hub.requests.clear()
    (part,) = (tmp_path / "hub").glob("models--*/blobs/*.incomplete")
    part.write_bytes(FILES["model.safetensors"][: 2**20])
    return part


def pulled():
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 0, done.stderr
    assert (Path(done.stdout.rstrip()) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_killed_download_goes_on_where_it_was(hub, tmp_path):
    weights = bytes(range(256)) * (3 * 2**16)  # 48 MB, as pieces of 10 MB are written
    hub.add("openai-community/gpt2", {**FILES, "model.safetensors": weights})
    hub.stops_at = 45 * 10**6
    process = start_cli("models", "pull", "gpt2")
    try:
        assert hub.has_stopped.wait(60)
        (part,) = (tmp_path / "hub").glob("models--*/blobs/*.incomplete")
        while part.stat().st_size < 40 * 2**20:  # what was sent last may be on its way
            assert process.poll() is None
            hub.goes_on.wait(0.01)
    finally:
        process.kill()
        finish(process)
    hub.stops_at = None
    hub.goes_on.set()
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 0, done.stderr
    assert first_bytes(hub) == [0, 40 * 2**20]
    assert (Path(done.stdout.rstrip()) / "model.safetensors").read_bytes() == weights
    assert not part.exists()


def test_two_at_once_download_once(hub):
    hub.stops_at = 2**20
    first = start_cli("models", "pull", "gpt2")
    assert hub.has_stopped.wait(60)
    second = start_cli("models", "pull", "gpt2")
    for _ in range(6000):  # until it has all but the weights
        if hub.asked_for("HEAD").count("model.safetensors") > 1:
            break
        hub.goes_on.wait(0.01)
    hub.goes_on.set()
    assert finish(first)[:2] == finish(second)[:2]
    assert first.returncode == 0
    assert first_bytes(hub) == [0]


def test_a_part_that_was_left_is_used(hub, partly):
    pulled()
    assert first_bytes(hub) == [2**20]


def test_a_part_that_is_whole(hub, partly):
    partly.write_bytes(FILES["model.safetensors"])
    pulled()
    assert first_bytes(hub) == []


@pytest.mark.parametrize("size", [0, 3 * 2**20])
def test_a_part_that_is_empty_or_too_long(hub, partly, size):
    partly.write_bytes(bytes(size))
    pulled()
    assert first_bytes(hub) == [0]


def test_a_server_that_does_not_know_ranges(hub, partly):
    hub.ignores_ranges = True
    pulled()


def test_a_part_of_something_else_is_not_taken_for_weights(hub, partly):
    partly.write_bytes(bytes(2**20))
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 1
    assert "model.safetensors of gpt2 came damaged" in done.stderr.splitlines()[-1]
    assert not partly.exists()
    hub.requests.clear()
    pulled()
    assert first_bytes(hub) == [0]


def test_vocab_and_merges_where_there_is_no_tokenizer_json(hub):
    hub.add(
        "org/old", {name: FILES[name] for name in NEEDED - {"tokenizer.json"}} | {"vocab.json": b"", "merges.txt": b""}
    )
    directory = run_cli("models", "pull", "org/old").stdout.rstrip()
    assert {"vocab.json", "merges.txt"} <= names(Path(directory))


def test_shards(hub):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {name: FILES[name] for name in NEEDED - {"model.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files |= dict.fromkeys(index["weight_map"].values(), b"shard")
    hub.add("org/big", files)
    directory = Path(run_cli("models", "pull", "org/big").stdout.rstrip())
    assert names(directory) == set(files)
    (directory / "model-00002-of-00002.safetensors").unlink()
    assert run_cli("generate", "-m", "org/big", "x").error.endswith(
        "`nvg models pull org/big` downloads what is missing"
    )
    (row,) = [line for line in run_cli("models").stdout.splitlines() if line.startswith("org/big")]
    assert row.split("  ")[1].strip() == "hub, incomplete"
    assert run_cli("models", "pull", "org/big").code == 0
    (row,) = [line for line in run_cli("models").stdout.splitlines() if line.startswith("org/big")]
    assert row.split("  ")[1].strip() == "hub"
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is not valid JSON" in run_cli("generate", "-m", "org/big", "x").error
    for weight_map in ({"a": "../../x.safetensors"}, {"a": "sub/x.safetensors"}, {"a": 1}, [], None):
        hub.add("org/bad", {**files, "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()})
        done = run_cli("models", "pull", "org/bad")
        assert done.code == 4
        assert "is no index of shards" in done.stderr.splitlines()[-1]
        hub.add("org/bad", files, OTHER)


def test_another_architecture_is_refused_before_its_weights_are_downloaded(hub):
    hub.add("meta/llama", {**FILES, "config.json": b'{"model_type": "llama"}'})
    done = run_cli("models", "pull", "meta/llama")
    assert done.code == 4
    assert "model_type is 'llama'" in done.stderr
    assert hub.asked_for("GET") == ["config.json"]


def test_a_repository_of_pickles(hub):
    hub.add("org/pickles", {name: FILES[name] for name in FILES if not name.endswith(".safetensors")})
    done = run_cli("models", "pull", "org/pickles")
    assert done.code == 4
    assert "org/pickles has neither model.safetensors nor an index of shards" in done.stderr
    assert "pytorch_model.bin" not in hub.asked_for("HEAD")


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("org/none", 4, "the hub has no model 'org/none', or it is private"),
        ("gpt2@v9", 4, "openai-community/gpt2 has no revision 'v9'"),
        ("org/gated", 4, "org/gated is gated: ask for access on https://huggingface.co/org/gated, then log in"),
        ("org/empty", 4, "org/empty on the hub is no model: it has no config.json"),
        ("nosuch", 2, "'nosuch' is no model of the hub; it must be gpt2"),
        ("../../etc", 2, "'../../etc' is no model of the hub"),
        ("a/b/c", 2, "'a/b/c' is no model of the hub"),
        ("org/x@../y", 2, "'org/x@../y' is no model of the hub"),
    ],
)
def test_what_cannot_be_had(hub, name, code, message):
    hub.add("org/gated", FILES)
    hub.gated.add("org/gated")
    hub.add("org/empty", {"README.md": b""})
    done = run_cli("models", "pull", name)
    assert done.code == code
    assert done.stdout == ""
    assert done.error.startswith(message)


def test_the_built_in_model_is_there(hub):
    done = run_cli("models", "pull", "tales")
    assert done == (0, f"{TALES}\n", "nvg: tales comes with nvg: there is nothing to download\n")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "gpt2@main"])
def test_rm_says_how_the_model_itself_is_removed(hub, name):
    run_cli("models", "pull", "gpt2")
    assert run_cli("models", "rm", name).error == (
        f"no packed weights of {name!r}; there are none of any model; "
        "`hf cache rm model/openai-community/gpt2` removes the model itself"
    )


def test_the_token_comes_from_the_usual_places(hub, tmp_path, monkeypatch):
    hub.add("me/own", FILES)
    hub.private["me/own"] = "hf_secret"
    assert run_cli("models", "pull", "me/own").code == 4
    (tmp_path / "token").write_text("hf_secret\n")
    assert run_cli("models", "pull", "me/own").code == 0
    (tmp_path / "token").unlink()
    hub.add("me/own", FILES, OTHER)
    assert run_cli("models", "pull", "me/own").code == 4
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = run_cli("models", "pull", "me/own")
    assert done.code == 0
    assert "hf_secret" not in done.stdout + done.stderr


def test_a_name_that_moved_on_the_hub(hub):
    hub.moved["someone/gpt2"] = "openai-community/gpt2"
    assert run_cli("models", "pull", "someone/gpt2").code == 0
    assert run_cli("tokenize", "-m", "someone/gpt2", "x").code == 0


def test_no_network(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 1
    assert "config.json of gpt2 could not be downloaded: " in done.stderr.splitlines()[-1]


def test_a_hub_whose_name_nobody_knows_is_not_asked_again_and_again(hub, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 1
    assert done.error.startswith("hub.invalid can't be reached (")
    assert len(done.stderr.splitlines()) == 1


def test_offline(hub):
    done = finish(start_cli("models", "pull", "gpt2", env={"HF_HUB_OFFLINE": "1"}))
    assert done.code == 1
    assert "config.json of gpt2 could not be downloaded: OfflineModeIsEnabled" in done.error
    assert hub.requests == []


def test_without_the_library(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = run_cli("models", "pull", "gpt2")
    assert done.code == 1
    assert done.error.startswith("downloading needs huggingface_hub: `pip install 'nvg[hub]'` installs it")
