import itertools
import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import jsonschema
import numpy as np
import nvg_grammar
import pytest
import schemas
from llguidance import LLMatcher, LLTokenizer
from nvg_grammar import matchers
from nvg_grammar.benchmark import FORMS, token_times
from nvg_grammar.forms import LIMITS, grammar_of
from nvg_grammar.sampler import Grammar

from nvg import LLM, SamplingParams, hub
from nvg.errors import ParameterError, SamplerError
from nvg.plugins import Registry
from nvg.sampling.chain import Chain, Stage
from nvg.sampling.contract import SamplerRequest
from nvg.sampling.options import make_spec
from nvg.sampling.topk import TopK
from nvg.testing import check_sampler
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.bytes import BytesTokenizer

GPT2 = Path(__file__).resolve().parents[4] / "shared" / "gpt2-tokenizer"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tales():
    return ByteLevelBPE.from_dir(hub.resolve_model("tales"))


@pytest.fixture(scope="module")
def gpt2():
    if not GPT2.exists():
        pytest.skip(f"there is no {GPT2}")
    return ByteLevelBPE.from_dir(GPT2)


def request_for(tokenizer, **params):
    prompt = np.zeros(1, np.int32)
    return SamplerRequest(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids, prompt, SamplingParams(**params))


def bias_of(tokenizer):
    """Logits by which texts come to an end."""
    bias = np.zeros(tokenizer.vocab_size, np.float32)
    for token_id in range(tokenizer.vocab_size):
        if tokenizer.token_bytes(token_id)[:1] in (b'"', b"]", b"}"):
            bias[token_id] = 4
    bias[list(tokenizer.eos_token_ids)] = 4
    return bias


def written(spec, tokenizer, seed, max_tokens=300, bias=None, stages=()):
    """(text, whether it ended) of a chain on random logits."""
    bias = bias_of(tokenizer) if bias is None else bias
    request = request_for(tokenizer)
    chain = Chain([Stage("grammar", spec, "here"), *stages], request, seed)
    generator = np.random.Generator(np.random.PCG64(seed))
    output = np.empty(0, np.int32)
    for _ in range(max_tokens):
        logits = generator.standard_normal(tokenizer.vocab_size, np.float32) * 2 + bias
        token_id, _ = chain.sample(logits, request.prompt_token_ids, output)
        if token_id in tokenizer.eos_token_ids:
            return tokenizer.decode(output.tolist()), True
        output = np.append(output, np.int32(token_id))
    return tokenizer.decode(output.tolist()), False


@pytest.mark.parametrize("name", FORMS)
def test_it_keeps_the_contract(name):
    check_sampler(Grammar, FORMS[name])


def valid_share(tokenizer, num_schemas, first_seed=0):
    """Draw a text for each of many random schemas, validate those that ended; which share that was."""
    bias, ended = bias_of(tokenizer), 0
    for seed in range(first_seed, first_seed + num_schemas):
        schema = schemas.random_schema(random.Random(seed))
        text, whole = written(Grammar(schema=json.dumps(schema)), tokenizer, seed, bias=bias)
        if whole:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            ended += 1
    return ended / num_schemas


def test_every_text_is_valid_by_another_validator(tales):
    assert valid_share(tales, 40) > 0.9


@pytest.mark.slow
def test_hundreds_of_schemas(tales):
    assert valid_share(tales, 600, 1000) > 0.9


@pytest.mark.slow
def test_hundreds_of_schemas_with_gpt2_s_tokenizer(gpt2):
    assert valid_share(gpt2, 200, 5000) > 0.9


@pytest.mark.parametrize("number", range(6))
def test_a_regular_expression_is_matched_by_the_whole_text(number, tales):
    pattern = (
        r"\d{4}-\d\d-\d\d",
        r"(ab|c)+d?",
        r"[^a-z]{1,5}",
        r"[A-Z][a-z]{2,7}( [a-z]{1,4}){0,3}\.",
        "x",
        r"(\w+@\w{2,4};){2}",
    )[number]
    for seed in range(5):
        text, whole = written(Grammar(regex=pattern), tales, seed, max_tokens=60)
        assert not whole or re.fullmatch(pattern, text), text


def test_a_choice_is_one_of_them(tales):
    spec = Grammar(choice=r'yes,no\, never,say "perhaps",\d')
    texts = {written(spec, tales, seed) for seed in range(40)}
    assert texts == {(text, True) for text in ("yes", "no, never", 'say "perhaps"', r"\d")}


def test_a_lark_grammar(tales):
    spec = Grammar(lark='start: "(" start ")" | WORD\nWORD: /[a-z]{1,4}/')
    for seed in range(8):
        text, whole = written(spec, tales, seed, max_tokens=60)
        assert not whole or re.fullmatch(r"(\(*)[a-z]{1,4}(\)*)", text)
        assert not whole or text.count("(") == text.count(")")


def test_whitespace_is_one_space_unless_it_may_be_any(tales):
    schema = json.dumps({**PERSON, "properties": {"name": {"const": "a"}, "age": {"const": 1}}})
    assert written(Grammar(schema=schema), tales, 0) == ('{"name": "a", "age": 1}', True)
    texts = {written(Grammar(schema=schema, whitespace=True), tales, seed, 80)[0] for seed in range(5)}
    assert len(texts) > 1


def test_a_file(tmp_path, tales):
    (tmp_path / "schema.json").write_text(json.dumps(PERSON))
    spec = Grammar(schema=f"@{tmp_path / 'schema.json'}")
    assert spec == Grammar(schema=json.dumps(PERSON)) == pickle.loads(pickle.dumps(spec))
    jsonschema.validate(json.loads(written(spec, tales, 1)[0]), PERSON)
    (tmp_path / "g.lark").write_text('start: "a"')
    assert written(Grammar(lark=f"@{tmp_path / 'g.lark'}"), tales, 1) == ("a", True)


def test_end_of_text_only_where_the_text_is_whole():
    tokenizer = BytesTokenizer()
    guided = Grammar(regex="a{2,3}").start(request_for(tokenizer))
    allowed = []
    for token_id in (97, 97, 97):
        logits = np.zeros(257, np.float32)
        guided.apply(logits, np.arange(257, dtype=np.int32), None)
        allowed.append(np.flatnonzero(logits == 0).tolist())
        guided.accept(token_id, 0.0)
    logits = np.zeros(257, np.float32)
    guided.apply(logits, np.arange(257, dtype=np.int32), None)
    assert [*allowed, np.flatnonzero(logits == 0).tolist()] == [[97], [97], [97, 256], [256]]
    guided.accept(256, 0.0)  # and whoever goes on gets the same
    guided.apply(logits, np.arange(257, dtype=np.int32), None)
    assert np.flatnonzero(logits == 0).tolist() == [256]


def test_special_tokens_are_no_text():
    class Commanded(BytesTokenizer):
        vocab_size = 258
        fingerprint = "bytes-258"
        special_tokens = MappingProxyType({"<|endoftext|>": 256, "run": 257})

        def token_bytes(self, token_id):
            return b"run" if token_id == 257 else super().token_bytes(token_id)

    for pattern in (r"<\|endoftext\|>", "r[a-z]{2,5}"):
        guided = Grammar(regex=pattern).start(request_for(Commanded()))
        logits = np.zeros(258, np.float32)
        guided.apply(logits, np.arange(258, dtype=np.int32), None)
        assert np.flatnonzero(logits == 0).tolist() == [ord(pattern[0])]


class Awkward(BytesTokenizer):
    """Letters, letters after a space, and end-of-text: nothing for a space alone, and encode begins with one."""

    tokens = (*(bytes([97 + i]) for i in range(26)), *(b" " + bytes([97 + i]) for i in range(26)), b"<end>")
    vocab_size, eos_token_ids, fingerprint = len(tokens), (len(tokens) - 1,), "awkward"
    special_tokens = MappingProxyType({"<end>": len(tokens) - 1})

    def encode(self, text, *, allow_special=False):
        return [self.tokens.index(token.encode()) for token in re.findall(" ?[a-z]", f" {text}")]

    def token_bytes(self, token_id):
        return self.tokens[token_id]


def test_a_tokenizer_that_changes_text_and_lacks_bytes():
    spec = Grammar(choice="the king,the thing,the")
    assert {written(spec, Awkward(), seed)[0] for seed in range(30)} == {"the king", "the thing", "the"}
    with pytest.raises(SamplerError, match="the tokenizer has no token for what the form asks for here"):
        written(Grammar(choice="\u00fcber"), Awkward(), 0)


def test_some_candidates():
    guided = Grammar(regex="[a-f]").start(request_for(BytesTokenizer()))
    ids = np.array([5, 97, 98, 200, 256], np.int32)
    logits = np.zeros(5, np.float32)
    guided.apply(logits, ids, None)
    assert ids[logits == 0].tolist() == [97, 98]


def test_what_was_removed_before_it():
    tokenizer = BytesTokenizer()
    request = request_for(tokenizer)
    chain = Chain(
        [Stage("topk", TopK(1), "nvg"), Stage("grammar", Grammar(choice="yes"), "nvg-grammar 0.1.0")], request, 0
    )
    logits = np.zeros(257, np.float32)
    logits[65] = 1
    with pytest.raises(SamplerError) as caught:
        chain.sample(logits, request.prompt_token_ids, np.empty(0, np.int32))
    assert str(caught.value).startswith(
        "sampler 'grammar' of nvg-grammar 0.1.0 raised ValueError: of the tokens that the form allows here (1) none is "
        "among the candidates that are left: put grammar before what removes them in the chain"
    )


def test_min_tokens_against_a_whole_text():
    tokenizer = BytesTokenizer()
    request = request_for(tokenizer, min_tokens=5)
    chain = Chain([Stage("grammar", Grammar(choice="a"), "here")], request, 0)
    output = np.empty(0, np.int32)
    token_id, _ = chain.sample(np.zeros(257, np.float32), request.prompt_token_ids, output, banned=[256])
    with pytest.raises(
        SamplerError, match=r"or lower min_tokens \(5\): the text is whole \(sampler.py, line \d+\), at output token 1"
    ):
        chain.sample(np.zeros(257, np.float32), request.prompt_token_ids, np.array([token_id], np.int32), banned=[256])


def test_a_tokenizer_without_end_of_text():
    class Endless(BytesTokenizer):
        eos_token_ids = ()

    with pytest.raises(ValueError, match="the tokenizer has no end-of-text token"):
        Grammar(choice="a").start(request_for(Endless()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "of the options schema, regex, choice and lark none is given; give one"),
        ({"regex": "a", "choice": "b"}, "regex and choice are given; give one"),
        ({"schema": "{"}, "schema is not JSON: "),
        ({"schema": "[]"}, "schema is a JSON list; it must be an object"),
        ({"schema": "@nowhere.json"}, "schema is '@nowhere.json': the file can't be read: No such file"),
        ({"schema": "false"}, "schema is false: no text has this form"),
        ({"schema": '{"type": "integer", "minimum": 5, "maximum": 3}'}, "schema can't be used: "),
        ({"schema": '{"type": "strin"}'}, "schema can't be used: "),
        ({"schema": '{"type": "array", "uniqueItems": true}'}, "schema can't be used: "),
        ({"schema": '{"$ref": "https://example.com/schema.json"}'}, "schema can't be used: "),
        ({"schema": '{"not": ' * 200 + "true" + "}" * 200}, "schema nests deeper than 100 levels"),
        ({"schema": "[" * 100_000}, "schema is not JSON"),
        ({"schema": " " * 1_000_001}, "schema has more than 1000000 bytes; make it smaller"),
        ({"regex": "("}, "regex can't be used: "),
        ({"regex": ""}, "regex is empty"),
        ({"regex": "(?=a)b"}, "regex can't be used: "),
        ({"regex": r"(a)\1"}, "regex can't be used: "),
        ({"regex": r"[^\s\S]"}, "regex can't be used: no text has this form"),
        ({"schema": '{"$ref": "#"}'}, "schema can't be used: no text has this form"),
        ({"regex": r"abc[^\s\S]"}, "regex can't be used: "),
        ({"choice": "a,,b"}, "choice is 'a,,b': one of the texts is empty"),
        ({"lark": "start: nothing"}, "lark can't be used: "),
        ({"lark": "start: x\nx: (y"}, "lark can't be used: 2(6): Expected token ')', found "),
        ({"lark": "start: start"}, "no text has this form: the rule start can't come to an end"),
        ({"lark": 'start: "a" start | /b+/ start'}, "no text has this form: the rule start can't come to an end"),
        ({"lark": 'start: "x" y | "z"\ny: z\nz: y "b"'}, "no text has this form: the rules y, z can't come to an end"),
        (
            {"schema": '{"allOf": [{"type": "string"}, {"type": "integer"}]}'},
            "Unsatisfiable schema: incompatible types",
        ),
        ({"schema": '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}'}, "can't be used: "),
    ],
)
def test_what_can_not_be_is_refused_with_a_reason(options, reason):
    with pytest.raises(ParameterError) as caught:
        make_spec("grammar", "nvg-grammar", Grammar, options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_of_ten_megabytes_is_not_read_to_its_end(tmp_path):
    (tmp_path / "large.json").write_text('{"enum": [' + ",".join(f'"{i:08}"' for i in range(900_000)) + "]}")
    with pytest.raises(ValueError, match="schema has more than 1000000 bytes"):
        Grammar(schema=f"@{tmp_path / 'large.json'}")


HARD = {
    "nested repetition": {"regex": "((a+)+)+b"},
    "exponential automaton": {"regex": "(a|b)*a(a|b){400}"},
    "many intersections": {"regex": ".*".join("abcdefghijklmnopqrstuvwxyz") * 20},
    "counts of counts": {"regex": "(((a{1000}){1000}){1000}){1000}"},
    "large counts": {"regex": "([a-z]{1,500}[0-9]{1,500}){1,500}"},
    "wide choice": {"choice": ",".join(f"text number {i}" for i in range(50_000))},
    "large enum": {"schema": json.dumps({"enum": [f"value {i}" for i in range(40_000)]})},
    "many properties": {
        "schema": json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}})
    },
    "forced without an end": {"lark": 'start: "x" | /a+/ "a"'},
    "recursion in JSON": {"lark": 'start: %json {"type": "object", "properties": {"a": {"$ref": "#"}}}'},
    "ambiguous grammar": {"lark": 'start: s\ns: s s | s s s | "a" | '},
}


@pytest.mark.skipif(sys.platform == "win32", reason="limits a process's time")
@pytest.mark.parametrize("name", HARD)
def test_what_is_hard_is_refused_or_goes_on_in_time(name, tales):
    """Each in a process that is given half a minute of the processor, for the compiler and 40 tokens."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1]); import test_grammar as t\n"
        "from nvg.errors import SamplerError\n"
        "try:\n"
        "    spec = t.Grammar(**t.HARD[sys.argv[2]])\n"
        "    t.written(spec, t.ByteLevelBPE.from_dir(t.hub.resolve_model('tales')), 0, max_tokens=40)\n"
        "    print('goes on')\n"
        "except (ValueError, SamplerError) as error:\n"
        "    print('refused:', error)\n"
    )
    here = Path(__file__)
    paths = json.dumps([str(here.parent), str(here.parents[1]), str(here.parents[3])])
    done = subprocess.run([sys.executable, "-c", program, paths, name], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("goes on", "refused: ")), done.stdout


def test_sequences_do_not_see_each_other(tales):
    spec = Grammar(choice="abc,xyz")
    guided = [spec.start(request_for(tales)) for _ in range(2)]
    guided[0].accept(tales.encode("x")[0], 0.0)
    logits = np.zeros(tales.vocab_size, np.float32)
    guided[1].apply(logits, np.arange(tales.vocab_size, dtype=np.int32), None)
    assert logits[tales.encode("a")[0]] == 0


def test_a_token_that_the_form_does_not_take():
    guided = Grammar(choice="a").start(request_for(BytesTokenizer()))
    with pytest.raises(ValueError, match="the form does not take token 98"):
        guided.accept(98, 0.0)


def test_with_a_model_alone_and_beside_others():
    prompts = ["The king said", "Once upon a time", "A fox"]
    spec = Grammar(schema=json.dumps(PERSON))
    wanted = SamplingParams(sampler=[spec, "topk"], max_tokens=60, seed=4)
    short = SamplingParams(sampler=spec, max_tokens=3, seed=4)
    with LLM("tales") as llm:
        outputs = llm.generate(prompts, wanted)
        assert [llm.generate(prompt, wanted)[0].token_ids for prompt in prompts] == [o.token_ids for o in outputs]
        for output in outputs:
            assert output.finish_reason == "stop"
            jsonschema.validate(json.loads(output.text), PERSON)
        (cut,) = llm.generate("The king", short)
        assert (cut.finish_reason, len(cut.token_ids), cut.text[0]) == ("length", 3, "{")


CROSSING = {
    "prose": {"regex": r"[A-Za-z ,.'-]{10,60}"},
    "short words": {"regex": r"[a-z]{1,4}( [a-z]{1,12}){2,4}"},
    "words and stops": {"regex": "([A-Za-z]+[ ,.]){3,9}"},
    "letters of any script": {"regex": r"\w{1,12}( \w+)*"},
    "terminals": {"lark": 'start: WORD (" " WORD)* "."\nWORD: /[a-z]{1,15}/'},
    "another terminal inside": {
        "lark": "start: (WORD | NOT)+\nWORD: /[a-z]{1,25}/ & ~/.*[aeiou]n?/\nNOT: / [a-zA-Z]{9}/"
    },
}


@pytest.mark.parametrize("name", [*FORMS, *CROSSING])
def test_tokens_that_are_looked_at_together_are_those_that_each_would_be_allowed(name, tales):
    """The masks are the same without any groups of tokens, step by step."""
    spec = Grammar(**{**FORMS, **CROSSING}[name])
    key = matchers._Key(tales, tales.vocab_size, tales.eos_token_ids)
    alone = LLMatcher(matchers._ll_tokenizer(key).with_slices([]), grammar_of(spec), limits=LIMITS)
    generator, bias = np.random.Generator(np.random.PCG64(3)), bias_of(tales)
    ids = np.arange(tales.vocab_size, dtype=np.int32)
    guided = spec.start(request_for(tales))
    for _ in range(40):
        logits = generator.standard_normal(tales.vocab_size, np.float32) * 2 + bias
        guided.apply(logits, ids, None)
        mask = np.unpackbits(np.frombuffer(alone.compute_bitmask(), np.uint8), bitorder="little")[: logits.size]
        assert np.array_equal(logits > -np.inf, mask == 1)
        token_id = int(logits.argmax())
        guided.accept(token_id, 0.0)
        if token_id in tales.eos_token_ids:
            break
        assert alone.consume_token(token_id)


def test_groups_of_tokens_are_in_llguidance_s_own_and_apart_from_each_other(gpt2):
    def members(group):
        return {i for i in range(gpt2.vocab_size) if re.fullmatch(group.encode(), gpt2.token_bytes(i))}

    own = [members(group) for group in LLTokenizer.general_slices()]
    for letters in (matchers._WORDS[:4], matchers._WORDS[4:]):
        groups = [members(group) for group in letters]
        assert all(any(group < other for other in own) for group in groups)
        assert len(set.union(*groups)) == sum(map(len, groups)) > 20_000


def test_the_benchmark_measures(tales):
    assert len(token_times(Grammar(**FORMS["a date"]), tales, tales.vocab_size, 20)) == 20


def test_it_registers_without_llguidance():
    registry = Registry("")
    registry.register(nvg_grammar, "nvg-grammar")
    assert registry.samplers.load("grammar") is Grammar
    directory = Path(nvg_grammar.__file__).parents[1]
    program = "import nvg_grammar, sys; assert not {'llguidance', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)


def test_schemas_are_of_every_kind():
    made = [schemas.random_schema(random.Random(seed)) for seed in range(200)]
    keys = set(itertools.chain.from_iterable(made))
    assert {"properties", "prefixItems", "items", "anyOf", "enum", "const", "pattern", "minimum", "maxLength"} <= keys
