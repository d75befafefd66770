"""From options to llguidance's grammars, with limits on what they may cost."""

import json
import re
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from nvg_grammar.recursion import endless_rules

MAX_BYTES = 1_000_000
"""Of a schema, an expression, a list or a grammar. Larger ones are refused before they are looked at."""
MAX_DEPTH = 100
"""Of objects and arrays in a schema."""

LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,  # about 40 ms
    step_lexer_fuel=400_000,  # about 30 ms
    max_lexer_states=100_000,  # about 150 MB
    max_grammar_size=500_000,
    verbose_errors=False,
)
"""What compiling a form, and one step in it, may cost."""

_FIRST_BYTES = 32
"""That a form is tried with when it is made."""

_UNFORCED = '\n%llguidance {"no_forcing": true}'
"""Text that is forced may be written in any tokens of a Lark grammar. llguidance would follow it to its end, and there
is none where a terminal takes all that comes: `/a+/ "a"`."""

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def read_form(kind, value):
    """The text of an option; a schema or a grammar may stand in a file. Raises ValueError."""
    text = value
    if kind in ("schema", "lark") and value.startswith("@"):
        try:
            with open(value[1:], "rb") as file:
                data = file.read(MAX_BYTES + 1)
            text = data.decode("utf-8")
        except OSError as error:
            raise ValueError(f"{kind} is {value!r}: the file can't be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ValueError(f"{kind} is {value!r}: the file is not UTF-8; convert it first") from None
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ValueError(f"{kind} has more than {MAX_BYTES} bytes; make it smaller")
    if not text:
        raise ValueError(f"{kind} is empty; leave it out or say what the text is to be")
    return text


@lru_cache(maxsize=64)
def check_form(spec):
    """Compile the form and follow the first bytes of a text in it. Raises ValueError with the reason."""
    grammar = grammar_of(spec)
    kind = next(name for name in ("schema", "regex", "choice", "lark") if getattr(spec, name) is not None)
    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=LIMITS)
    if spec.lark is not None and not matcher.is_error():
        endless = endless_rules(spec.lark)
        if endless:
            names = f"{'rules' if endless[1:] else 'rule'} {', '.join(endless[:5])}"
            raise ValueError(f"lark can't be used: no text has this form: the {names} can't come to an end")
    for _ in range(_FIRST_BYTES):
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            raise ValueError(f"{kind} can't be used: {reason(matcher.get_error())}")
        if matcher.is_accepting():
            return
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        if not allowed.size:
            raise ValueError(f"{kind} can't be used: no text has this form")
        matcher.consume_token(int(allowed[0]))


def reason(message):
    """An error of llguidance in one line; it has names for some, and quotes a grammar's lines."""
    if message.startswith("NoExtensionBias"):
        return "no text has this form"
    return " ".join(re.sub(r"\n *\^\n.*", "", message, flags=re.DOTALL).split())[:300]


def grammar_of(spec):
    """llguidance's grammar for the option that is given. Raises ValueError."""
    if spec.schema is not None:
        schema = _parsed_schema(spec.schema)
        return LLMatcher.grammar_from_json_schema(schema, overrides={} if spec.whitespace else _COMPACT)
    if spec.regex is not None:
        return LLMatcher.grammar_from_regex(spec.regex)
    if spec.choice is not None:
        choices = [choice.replace("\\,", ",") for choice in re.split(r"(?<!\\),", spec.choice)]
        if not all(choices):
            raise ValueError(f"choice is {spec.choice!r}: one of the texts is empty; write them as a,b,c")
        # As one terminal, the texts become one automaton, however many they are.
        return LLMatcher.grammar_from_lark("start: TEXT\nTEXT: " + " | ".join(json.dumps(text) for text in choices))
    return LLMatcher.grammar_from_lark(spec.lark + _UNFORCED)


def _parsed_schema(text):
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"schema is not JSON: {error}; a file is given as @FILE") from None
    if not isinstance(schema, (dict, bool)):
        raise ValueError(f"schema is a JSON {type(schema).__name__}; it must be an object")
    if _depth(schema) > MAX_DEPTH:
        raise ValueError(f"schema nests deeper than {MAX_DEPTH} levels; use $ref")
    if schema is False:
        raise ValueError("schema is false: no text has this form")
    return json.dumps({} if schema is True else schema)


def _depth(value):
    """How deep objects and arrays nest, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for items in inner for item in items]
    return depth


@lru_cache(maxsize=1)
def _byte_tokenizer():
    return LLTokenizer("byte")
