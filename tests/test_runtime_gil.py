"""The interpreter's switch interval is short while there is work, and as it was afterwards."""

import sys

import pytest

from nvg.runtime.gil import GilShare


@pytest.fixture(autouse=True)
def interval():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_it_is_short_until_given_up():
    one, two = GilShare(), GilShare()
    one.claim()
    two.claim()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    one.give_up()
    two.claim()
    assert sys.getswitchinterval() == pytest.approx(0.0005), "the other still works"
    two.give_up()
    assert sys.getswitchinterval() == pytest.approx(0.005)
    two.give_up()
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize("value", [0.0001, 0.02])
def test_what_others_set_is_left_alone(value):
    share = GilShare()
    share.claim()
    sys.setswitchinterval(value)
    share.give_up()
    assert sys.getswitchinterval() == pytest.approx(value)
    if value < 0.0005:
        share.claim()
        assert sys.getswitchinterval() == pytest.approx(value)
