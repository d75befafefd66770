import numpy as np
import nvg_lucky
from nvg_lucky import Lucky

from nvg.plugins import Registry
from nvg.testing import check_sampler


def test_it_keeps_the_contract():
    check_sampler(Lucky)


def test_with_certainty_the_second_best_is_the_best():
    def second(probabilities):
        return np.where(probabilities == probabilities.max(), 0, probabilities)

    check_sampler(Lucky(1.0), formula=second)


def test_without_chance_nothing_happens():
    check_sampler(Lucky(0.0), formula=lambda probabilities: probabilities)


def test_it_registers_under_its_name():
    registry = Registry("")
    registry.register(nvg_lucky, "nvg-lucky")
    assert registry.samplers.load("lucky") is Lucky
