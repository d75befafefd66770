import random

import pytest
from llguidance import LLMatcher, LLTokenizer
from nvg_grammar.recursion import endless_rules


@pytest.mark.parametrize(
    ("grammar", "endless"),
    [
        ("start: start", "start"),
        ('start: a | b\na: a "x"\nb: b "y"\n  | "z"', "a"),
        ("start: /a+/ start", "start"),
        ("start: x? y*\nx: x\ny: y /:/ x", "x y"),
        ('start: x{0,3} y~0..2 z{,1} "a"\nx: x\ny: y\nz: z', "x y z"),
        ("start: x{2,3}\nx: x{,2} y\ny: y~1..2", "start x y"),
        ("start: [x] (y | z)\nx: start\ny: (z | y)+\nz: z", "start x y z"),
        ('start: ("a" | "b" x)+ "."\nx: x "c"', "x"),
        ('start: x // | "a"\n# start: x\nx: x # | "b"', "start x"),
        ('start: x\n  | "a: x" | /b: x|start:/ start\nx: "c"i', ""),
        ("start: x -> here\n?x[capture, max_tokens=3]: /[0-9]+/", ""),
        ("start: x\nx: WORD\nWORD: LETTER LETTER*\nLETTER: /[a-z]/", ""),
        ('start: %json {"type": "object"}', ""),
        ('start: %json {"const": "a: start"} start', "start"),
        ('%llguidance {}\nstart: %regex {"substring_chars": "abc"} | start', ""),
        ('start: "a"\nunused: unused', ""),
        ('start: perm::0x0\nperm::_: "" %if is_ones([0:2]) | "a" perm::set_bit(0) %if bit_clear(0)', ""),
        ("%import common.INT\n%ignore /[ ]+/\nstart: INT | start", ""),
        ('start: x # all\n  | "a"\nx: start', ""),
        ("start: ", ""),
    ],
)
def test_rules_that_no_text_has(grammar, endless):
    assert endless_rules(grammar) == endless.split()


def shortest(rules):
    """The length of each rule's shortest text, where it has one: by trying all lengths, in turn."""
    lengths = {}
    for _ in range(len(rules) + 1):
        for name, alternatives in rules.items():
            for parts in alternatives:
                if all(part in lengths for part in parts if part.islower()):
                    length = sum(lengths.get(part, 1) for part in parts)
                    lengths[name] = min(lengths.get(name, length), length)
    return lengths


def test_random_grammars():
    found = 0
    for seed in range(300):
        generator = random.Random(seed)
        names = ["start", *"abcdef"]
        rules = {
            name: [
                generator.choices([*names, *"XXXX"], k=generator.randint(1, 3)) for _ in range(generator.randint(1, 2))
            ]
            for name in names
        }
        reached, ready = [], ["start"]
        while ready:
            name = ready.pop()
            if name in rules and name not in reached:
                reached.append(name)
                ready += [part for parts in rules[name] for part in parts]
        endless = [name for name in names if name in reached and name not in shortest(rules)]
        lines = [f"{name}: " + " | ".join(" ".join(parts) for parts in rules[name]) for name in names]
        assert endless_rules("\n".join([*lines, 'X: "x"'])) == endless
        found += bool(endless)
    assert 100 < found < 250


def test_llguidance_takes_the_grammars_of_these_tests():
    (cases,) = (mark.args[1] for mark in test_rules_that_no_text_has.pytestmark if mark.name == "parametrize")
    tokenizer = LLTokenizer("byte")
    for grammar, _ in cases:
        text = 'start: "a" | inner\n' + grammar.replace("start", "inner")  # so that none is empty
        matcher = LLMatcher(
            tokenizer, LLMatcher.grammar_from_lark(text + '\n%llguidance {"no_forcing": true}'), log_level=0
        )
        assert not matcher.is_error(), (text, matcher.get_error())


def test_a_long_chain():
    rules = [f'r{i}: r{i + 1} | r{i + 1} "x"' for i in range(20_000)]
    assert endless_rules("\n".join(["start: r0", *rules, "r20000: WORD"])) == []
    assert len(endless_rules("\n".join(["start: r0", *rules, "r20000: r0"]))) == 20_002
