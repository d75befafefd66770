import numpy as np
import nvg_topa
import pytest
from nvg_topa import TopA

from nvg.errors import ParameterError
from nvg.plugins import Registry
from nvg.sampling.options import make_spec, options_of


def kept(probabilities: list[float], a: float) -> list[int]:
    logits = np.log(np.array(probabilities, dtype=np.float32))
    TopA(a).apply(logits, np.arange(logits.size, dtype=np.int32), None)
    return np.flatnonzero(np.isfinite(logits)).tolist()


def test_the_bar_is_a_times_the_square_of_the_largest_probability():
    assert kept([0.1, 0.5, 0.04, 0.36], 0.2) == [0, 1, 3]  # 0.05
    assert kept([0.1, 0.5, 0.04, 0.36], 0.5) == [1, 3]  # 0.125
    assert kept([0.1, 0.5, 0.04, 0.36], 0) == [0, 1, 2, 3]


def test_the_most_probable_token_stays():
    assert kept([0.01, 0.99], 1) == [1]
    assert kept([1.0], 1) == [0]


def test_it_registers_under_its_name():
    registry = Registry("")
    registry.register(nvg_topa, "nvg-topa")
    assert registry.samplers.load("topa") is TopA


def test_its_option():
    (option,) = options_of(TopA)
    assert (option.name, option.default, option.help) == ("a", 0.2, "from 0 to 1; 0 means all")
    with pytest.raises(ParameterError, match=r"sampler 'topa': a is 2.0; it must be a number from 0 to 1"):
        make_spec("topa", "nvg-topa", TopA, {"a": 2})
