"""Chat templates: what they render, that a template is kept in its sandbox, and `nvg generate --chat`."""

import json
import shutil

import pytest
from checkpoints import TALES
from cli_runner import run_cli

from nvg.errors import CheckpointError, ParameterError
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.chat import apply_chat_template

pytest.importorskip("jinja2")
CHATML = """{% for message in messages %}
    {% if message.role not in ("system", "user", "assistant") %}
        {{- raise_exception("no role " + message.role) }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- generation %}{{ message['content'] }}{% endgeneration %}
    {{- '<|im_end|>\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ bos_token }}<|im_start|>assistant
{% endif %}"""
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who <are> you?"}]


def write(directory, template, **config):
    config = {"bos_token": {"content": "<b>"}, "eos_token": "<e>", "model_max_length": 512} | config
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} | config))
    return directory


def test_a_template_as_most_models_have_it(tmp_path):
    write(tmp_path, CHATML)
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho <are> you?<|im_end|>\n"
    assert apply_chat_template(tmp_path, MESSAGES, add_generation_prompt=False) == expected
    assert apply_chat_template(tmp_path, MESSAGES) == expected + "<b><|im_start|>assistant\n"


@pytest.mark.peers
def test_as_transformers_renders_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    shutil.copy(TALES / "tokenizer.json", tmp_path)
    templates = [
        CHATML,
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ eos_token }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{{ m.content | trim }}{% endfor %}{{ ns.n }}",
    ]
    for template in templates:
        write(tmp_path, template, bos_token="<b>", tokenizer_class="PreTrainedTokenizerFast")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        assert apply_chat_template(tmp_path, MESSAGES) == expected


def test_where_it_is_found(tmp_path):
    write(tmp_path, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])
    assert apply_chat_template(tmp_path, MESSAGES) == "yes"
    (tmp_path / "chat_template.jinja").write_text("its own file {{ bos_token }}")
    assert apply_chat_template(tmp_path, MESSAGES) == "its own file <b>"


@pytest.mark.parametrize("template", [None, [], [{"name": "tool_use", "template": "x"}], 5, {}])
def test_a_model_without_one(tmp_path, template):
    with pytest.raises(CheckpointError, match=r"has no chat template .*was not trained to chat"):
        apply_chat_template(write(tmp_path, template), MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "chat template has an error in line 1"),
        ("{{ messages[5].content }}", "chat template fails: UndefinedError"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "chat template fails: SecurityError"),
        ("{{ ''.format.__globals__.keys() }}", "chat template fails: SecurityError"),
        ("{{ messages.append(1) }}", "chat template fails: SecurityError"),
        ("{{ raise_exception.__globals__.keys() }}", "chat template fails: SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "chat template is refused: it computes with a number beyond"),
        ("{% for i in range(10**6) %}{% endfor %}", "chat template fails: OverflowError"),
        ("{{ 'x' * 10000000000 }}", "is refused: it makes a text or list of more than 1000000 items"),
        ("{{ [1] * 1000 * 1000 * 1000 }}", "is refused: it makes a text or list"),
        ("{{ '%1000000000d' % 1 }}", "is refused: it formats with a number"),
        ("{{ '%*d' % (1000000000, 1) }}", "is refused: it computes with a number"),
        ("{{ '{:1000000000}'.format(1) }}", "is refused: it formats with a number"),
        ("{{ '{:{}}'.format(1, 1000000000) }}", "is refused: it computes with a number"),
        ("{{ 'x'.ljust(1000000000) }}", "is refused: it computes with a number"),
        ("{{ 'x' | center(1000000000) }}", "is refused: it computes with a number"),
        ("{% set s = 'x' * 1000000 %}{{ s.replace('x', s) }}", "is refused: it makes a text"),
        ("{% set s = 'x' * 1000000 %}{{ s | replace('x', s) }}", "is refused: it makes a text"),
        (
            "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "MiB of memory",
        ),
        ("{% include 'x' %}", "chat template fails: "),
        ("{{ 1 // 0 }}", "chat template fails: ZeroDivisionError"),
        ("{{ nothing['x' * 999999] }}", "chat template fails: UndefinedError"),
        ("{{ messages | " + "x" * 999 + " }}", "chat template has an error in line 1"),
    ],
)
def test_a_damaged_or_hostile_template_ends_in_one_line(tmp_path, template, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_chat_template(write(tmp_path, template), MESSAGES)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_long_text_may_be_edited(tmp_path):
    source = "{{ messages[0].content.replace('<|end of the thought|>', '') | replace('<|another special one|>', '-') }}"
    content = "<|end of the thought|>" + "a" * 500_000 + "<|another special one|>"
    messages = [{"role": "user", "content": content}]
    assert apply_chat_template(write(tmp_path, source), messages) == "a" * 500_000 + "-"


def test_messages_that_a_template_refuses(tmp_path):
    with pytest.raises(ParameterError, match="the chat template refuses the messages: no role robot"):
        apply_chat_template(write(tmp_path, CHATML), [{"role": "robot", "content": ""}])


def test_damaged_files(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not valid JSON"):
        apply_chat_template(tmp_path, MESSAGES)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja can't be read"):
        apply_chat_template(tmp_path, MESSAGES)


def test_generate_chat(tmp_path, compiled_kernels):
    model = shutil.copytree(TALES, tmp_path / "model")
    write(model, "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}A:")
    text = "<|endoftext|>system: Rhyme.\n<|endoftext|>user: Who?\nA:"
    arguments = ("-m", model, "--max-tokens", "4", "--temperature", "0", "--format", "json")
    done = run_cli("generate", *arguments, "--chat", "--system", "Rhyme.", "Who?")
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["prompt"] == text
    ids = ByteLevelBPE.from_dir(model).encode(text, allow_special=True)
    assert ids.count(0) == 2
    assert told["usage"]["prompt_tokens"] == len(ids)
    plain = json.loads(run_cli("generate", *arguments, text).stdout)
    assert plain["usage"]["prompt_tokens"] > len(ids)  # there the special tokens are text
    assert run_cli("generate", *arguments, "--system", "x", "Who?").error.startswith("--system is for --chat")
    done = run_cli("generate", "--chat", "Who?")
    assert done.code == 4
    assert "has no chat template" in done.error
