"""What a post-processor puts around a whole text, against Hugging Face tokenizers, and where it comes into a prompt."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from cli_runner import run_cli

from nvg import LLM, SamplingParams
from nvg.errors import CheckpointError
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.bytes import BytesTokenizer
from nvg.tokenizers.prompt import encode_whole

TALES = Path(__file__).resolve().parents[1] / "nvg" / "data" / "tales"
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 7], "cls": ["<s>", 5], "trim_offsets": True}
ROBERTA |= {"add_prefix_space": True}


def special(name):
    return {"SpecialToken": {"id": name, "type_id": 0}}


def template(*pieces, **ids):
    ids = ids or {"<s>": [5], "</s>": [7, 5], "<none>": []}
    return {
        "type": "TemplateProcessing",
        "single": list(pieces),
        "pair": [TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": of, "tokens": [name] * len(of)} if isinstance(of, list) else of
            for name, of in ids.items()
        },
    }


def sequence(*processors):
    return {"type": "Sequence", "processors": list(processors)}


def tales_with(directory, post_processor):
    """The embedded model's tokenizer with another post-processor."""
    settings = json.loads((TALES / "tokenizer.json").read_text(encoding="utf-8"))
    settings["post_processor"] = post_processor
    (directory / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    "post_processor",
    [
        None,
        BYTES,
        ROBERTA,
        {"type": "BertProcessing", "sep": ["</s>", 7], "cls": ["<s>", 5]},
        template(TEXT),
        template(special("<s>"), TEXT),
        template(special("<s>"), special("</s>"), TEXT, special("</s>"), special("<none>")),
        template(TEXT, special("</s>")),
        sequence(),
        sequence(BYTES, template(special("<s>"), TEXT)),
        sequence(template(TEXT), ROBERTA, BYTES),
        sequence(BYTES, sequence(ROBERTA)),
    ],
    ids=lambda value: json.dumps(value)[:70],
)
def test_same_ids_as_tokenizers(tmp_path, post_processor):
    tales_with(tmp_path, post_processor)
    ours = ByteLevelBPE.from_dir(tmp_path)
    oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("", "The king", "a<|endoftext|>b", " \n"):
        assert encode_whole(ours, text, allow_special=True) == oracle.encode(text).ids
        assert ours.encode(text, allow_special=True) == oracle.encode(text, add_special_tokens=False).ids
    oracle.encode_special_tokens = True
    assert encode_whole(ours, "a<|endoftext|>b") == oracle.encode("a<|endoftext|>b").ids


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        ({"type": "RobertaProcessing"}, "post_processor 'RobertaProcessing' as it is here"),
        ({**ROBERTA, "sep": ["</s>", -1]}, "the id -1 in the post_processor"),
        ({"type": "x" * 999}, "post_processor 'xxx"),
        (5, "post_processor 5"),
        (template(special("<s>")), "a post_processor whose template has the text 0 times"),
        (template(TEXT, special("<s>"), TEXT), "a post_processor whose template has the text 2 times"),
        (template({"Sequence": {"id": "B"}}), r"{'Sequence': {'id': 'B'.* in the post_processor's template"),
        (template("$A"), r"'\$A' in the post_processor's template"),
        (template(special("<x>"), TEXT), "special token '<x>', which has no ids"),
        (template(special("<x>"), TEXT, **{"<x>": 5}), "special token '<x>', which has no ids"),
        (template(special("<x>"), TEXT, **{"<x>": [True]}), "the id True in the post_processor"),
        (sequence(ROBERTA, ROBERTA), "a post_processor with two parts that add tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_supported(tmp_path, post_processor, message):
    tales_with(tmp_path, post_processor)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{message}.* is not supported") as caught:
        ByteLevelBPE.from_dir(tmp_path)
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


def test_an_id_beyond_the_vocabulary(tmp_path):
    tales_with(tmp_path, template(special("<s>"), TEXT, **{"<s>": [4096]}))
    with pytest.raises(CheckpointError, match="the post_processor adds id 4096; ids go from 0 to 4095"):
        ByteLevelBPE.from_dir(tmp_path)


def test_fingerprints_differ(tmp_path):
    prints = set()
    for post_processor in (BYTES, ROBERTA, template(special("<s>"), TEXT), template(TEXT, special("<s>"))):
        tales_with(tmp_path, post_processor)
        prints.add(ByteLevelBPE.from_dir(tmp_path).fingerprint)
    assert len(prints) == 4


def test_a_tokenizer_without_affixes():
    assert encode_whole(BytesTokenizer(), "ab<|endoftext|>", allow_special=True) == [97, 98, 256]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = shutil.copytree(TALES, tmp_path_factory.mktemp("model") / "model")
    tales_with(directory, template(special("<s>"), TEXT, special("</s>")))
    return directory


def test_prompts_get_them_and_ids_do_not(model, compiled_kernels):
    params = SamplingParams(max_tokens=2, temperature=0, negative_prompt="A fox", guidance_scale=1.5)
    with LLM(str(model)) as llm:
        king = llm.tokenizer.encode("The king")
        texts, ids = llm.generate(["The king", ""], params), llm.generate([king, [5]], params)
    assert [output.prompt_token_ids for output in texts] == [[5, *king, 7, 5], [5, 7, 5]]
    assert [output.prompt_token_ids for output in ids] == [king, [5]]


def test_commands(model, compiled_kernels):
    king = ByteLevelBPE.from_dir(model).encode("The king")
    done = run_cli("tokenize", "-m", model, "--format", "json", "The king")
    assert json.loads(done.stdout)["token_ids"] == [5, *king, 7, 5]
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    arguments = ("generate", "-m", model, "--max-tokens", "1", "--format", "json", "The king")
    for more, number in (((), len(king) + 3), (("--chat",), len(king))):
        done = run_cli(*arguments, *more)
        assert json.loads(done.stdout)["usage"]["prompt_tokens"] == number
