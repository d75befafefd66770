import subprocess
import sys
from pathlib import Path

import numpy as np
import nvg_pless_plugin
from nvg_pless import PLess

from nvg.plugins import Registry
from nvg.testing import SamplerConformance


def by_the_paper(probabilities):
    return np.where(probabilities >= np.sum(probabilities**2), probabilities, 0)


class TestPLess(SamplerConformance):
    sampler = PLess
    formula = by_the_paper


class TestHalf(SamplerConformance):
    sampler = PLess(0.5)

    @staticmethod
    def formula(probabilities):
        return np.where(probabilities >= 0.5 * np.sum(probabilities**2), probabilities, 0)


def kept(probabilities, scale=1.0):
    logits = np.log(np.array(probabilities, np.float32))
    PLess(scale).apply(logits, np.arange(logits.size, dtype=np.int32), None)
    return np.flatnonzero(np.isfinite(logits)).tolist()


def test_the_bar_is_the_probability_of_two_equal_draws():
    assert kept([0.3, 0.1, 0.6]) == [2]  # 0.46
    assert kept([0.3, 0.1, 0.6], 0.5) == [0, 2]  # 0.23
    assert kept([0.25] * 4) == [0, 1, 2, 3]  # exactly 0.25
    assert kept([1.0]) == [0]


def test_it_registers_without_numba():
    registry = Registry("")
    registry.register(nvg_pless_plugin, "nvg-pless")
    assert registry.samplers.load("pless") is PLess
    program = "import nvg_pless_plugin, sys; assert not {'numba', 'numpy'} & set(sys.modules)"
    directory = Path(nvg_pless_plugin.__file__).parent
    subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)
