"""Rules of a Lark grammar that no text has, because they need themselves. llguidance follows them without an end."""

import itertools
import re
from collections import defaultdict
from json import JSONDecoder

_TOKEN = re.compile(
    r"""(?:[ \t\r]|(?:\#|//)[^\n]*)*(?:
    (?P<json>%(?:json|regex|llguidance)\s*)
    |(?P<value>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\])+/[imslux]*|<[^<>\s]+>|@[\w-]+|->\s*\w+)
    |(?P<name>%?!?[_?]?[A-Za-z][\w-]*)
    |(?P<optional>[?*]|\{[ \t]*0*[ \t]*,[^}]*\}|~[ \t]*0+\.\.\d+)
    |(?P<mark>::|.|\n))""",
    re.VERBOSE,
)
"""llguidance's own lexer, as far as it matters here."""
_GOES_ON = re.compile(r"\s*\|")


def endless_rules(grammar):
    """Names of rules that `start` leads to and that no text has, in the order of the grammar.

    `grammar` is one that llguidance takes. Terminals are no rules: llguidance refuses circles of them. Of parametric
    rules and nested grammars nothing is said.
    """
    rules = _read(grammar)
    reached, ready = set(), ["start"]
    while ready:
        symbol = ready.pop()
        if symbol in rules and symbol not in reached:
            reached.add(symbol)
            ready += rules[symbol].mentioned
    productive = _productive(rules)
    return [name for name in rules if isinstance(name, str) and name in reached and name not in productive]


class _Rule:
    """The alternatives of a rule, or of a group in one: the symbols that each needs; and all that are mentioned."""

    def __init__(self):
        self.alternatives, self.mentioned = [set()], set()

    def add(self, symbol, needed):
        self.mentioned.add(symbol)
        if needed:
            self.alternatives[-1].add(symbol)


def _productive(rules):
    """The symbols that some text has: those with an alternative of only such symbols."""
    users, ready, productive = defaultdict(list), [], set()
    for symbol, rule in rules.items():
        for alternative in rule.alternatives:
            needed = [other for other in alternative if other in rules]
            entry = [len(needed), symbol]
            for other in needed:
                users[other].append(entry)
            if not needed:
                ready.append(symbol)
    while ready:
        symbol = ready.pop()
        if symbol not in productive:
            productive.add(symbol)
            for entry in users[symbol]:
                entry[0] -= 1
                if not entry[0]:
                    ready.append(entry[1])
    return productive


def _read(grammar):
    """Rules by name, and groups in parentheses and brackets by number."""
    rules = {}
    for line in _lines(grammar):
        if line[0] == ("name", "%override"):
            del line[0]
        name = line[0][1].lstrip("!?")
        if ("mark", "::") in line or name == "%lark":
            return {}
        if name.startswith("%") or ("mark", ":") not in line:
            continue
        stack = [rules.setdefault(name, _Rule())]
        body = line[line.index(("mark", ":")) + 1 :]
        for (kind, text), (following, _) in itertools.pairwise([*body, ("", "")]):
            needed = following != "optional"
            if kind == "name":
                if text == "%lark":
                    return {}
                stack[-1].add(text, needed)
            elif text in ("(", "["):
                stack.append(_Rule())
            elif text in (")", "]"):
                number = len(rules)
                rules[number] = stack.pop()
                stack[-1].add(number, needed and text == ")")
            elif (kind, text) == ("mark", "|"):
                stack[-1].alternatives.append(set())
    return rules


def _lines(grammar):
    """The tokens of each definition and statement. A line that begins with | goes on with the one before."""
    line, position = [], 0
    while position < len(grammar):
        token = _TOKEN.match(grammar, position)
        if token is None:  # a comment at the end
            break
        kind, text, position = token.lastgroup, token[token.lastgroup], token.end()
        if kind == "json":
            position = JSONDecoder().raw_decode(grammar, position)[1]
        elif text != "\n":
            line.append((kind, text))
        elif line and not _GOES_ON.match(grammar, position):
            yield line
            line = []
    if line:
        yield line
