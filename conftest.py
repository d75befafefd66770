"""`pytest --long` adds the checks that take minutes: tests marked `slow`, and more examples for every property;
`--fuzz N` is how many."""

import pytest
from hypothesis import settings


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run what takes minutes")
    parser.addoption("--fuzz", type=int, metavar="N", help="examples for every property")


def pytest_configure(config):
    settings.register_profile("default", deadline=None)
    settings.register_profile("long", deadline=None, max_examples=config.getoption("--fuzz") or 1000)
    settings.load_profile("long" if config.getoption("--long") or config.getoption("--fuzz") else "default")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; runs with --long"))
