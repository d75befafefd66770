"""The tests run from a checkout, where llguidance and jsonschema are (tests/requirements-long.txt)."""

import importlib.util
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "tests")]
collect_ignore = [] if all(map(importlib.util.find_spec, ("llguidance", "jsonschema"))) else ["tests"]
