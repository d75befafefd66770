"""The conformance kit: whether a sampler or a tokenizer keeps its contract, in one line of an author's test.

    from nvg.testing import check_sampler

    def test_it_keeps_the_contract():
        check_sampler(TopA)

Or a test for each check, in pytest's report by name:

    class TestTopA(SamplerConformance):
        sampler = TopA

`nvg plugins check NAME` runs the same on anything installed, and on "file.py:Name".
"""

from nvg.testing.conformance import SamplerConformance, TokenizerConformance, check_sampler, check_tokenizer
from nvg.testing.results import ConformanceError, Result
from nvg.testing.samplers import sampler_results
from nvg.testing.tokenizers import tokenizer_results

__all__ = [
    "ConformanceError",
    "Result",
    "SamplerConformance",
    "TokenizerConformance",
    "check_sampler",
    "check_tokenizer",
    "sampler_results",
    "tokenizer_results",
]
