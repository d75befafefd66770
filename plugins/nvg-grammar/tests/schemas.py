"""Random JSON Schemas whose texts are short enough to be drawn from random logits."""

import string


def random_schema(rng, depth=3):
    """A schema, from a `random.Random`."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    if depth:
        kinds += ["object", "array", "anyOf", "object", "array", "tuple"]
    return _KINDS[rng.choice(kinds)](rng, depth)


def _string(rng, depth):
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(8)}


def _integer(rng, depth):
    low = rng.randrange(-1000, 1000)
    made = {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1000)}
    if rng.random() < 0.3:
        made["exclusiveMinimum"] = low - 1
    return made


def _number(rng, depth):
    low = rng.randrange(-100, 100)
    return {"type": "number", "minimum": low, "maximum": low + 1 + rng.randrange(100)}


def _enum(rng, depth):
    values = [1, -2.5, "a", 'quo"te', "", None, True, [1, 2], {"x": "y"}, "\u00fc\u4f60"]
    return {"enum": rng.sample(values, rng.randrange(1, 5))}


def _pattern(rng, depth):
    return {
        "type": "string",
        "pattern": rng.choice([r"^[a-z]{2,5}$", r"^\d{3}-\d{2}$", r"^(foo|bar)+$", r"^x?y*z{1,3}$"]),
    }


def _object(rng, depth):
    names = rng.sample(string.ascii_lowercase, rng.randrange(1, 5))
    properties = {name: random_schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng, depth):
    low = rng.randrange(3)
    return {
        "type": "array",
        "items": random_schema(rng, depth - 1),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }


def _tuple(rng, depth):
    items = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _any_of(rng, depth):
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randrange(2, 4))]}


_KINDS = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda rng, depth: {"type": "boolean"},
    "null": lambda rng, depth: {"type": "null"},
    "enum": _enum,
    "const": lambda rng, depth: {"const": rng.choice(["fixed", 7, None, {"k": [1]}])},
    "pattern": _pattern,
    "object": _object,
    "array": _array,
    "tuple": _tuple,
    "anyOf": _any_of,
}
