"""Random mixes of requests, and what each of them gives alone: what it must give in any company, bit by bit."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import AbortedError, ParameterError
from nvg.params import EngineConfig, SamplingParams
from nvg.sampling.compose import resolve

MOST_STEPS = 20_000


class Remembers:
    """A sampler with a memory: what it does depends on all that it accepted, and it notices what it is told twice."""

    def start(self, request):
        return _Memory()

    def apply(self, logits, token_ids, state): ...


class _Memory:
    def __init__(self):
        self._digest = hashlib.blake2b(digest_size=8)
        self._num_accepted = 0

    def apply(self, logits, token_ids, state):
        assert state.step == self._num_accepted == state.output_token_ids.size
        logits[int.from_bytes(self._digest.digest(), "little") % logits.size] += np.float32(1.5)

    def accept(self, token_id, logprob):
        self._digest.update(repr((token_id, logprob)).encode())
        self._num_accepted += 1


CHAINS = [
    (),
    "greedy",
    ("topk", ("temperature", {"t": 0.7})),
    (("topp", {"p": 0.6}), ("temperature", {"t": 2})),
    (("minp", {"p": 0.1}), ("topk", {"k": 3}), ("topp", {"p": 0.9})),
    Remembers(),
]


@dataclass(frozen=True)
class Wish:
    """A request as a test makes it. Steps are counted from the begin."""

    prompt: tuple[int, ...]
    params: SamplingParams
    arrives: int
    aborted: int | None
    is_watched: bool


@st.composite
def params(draw, longest):
    """SamplingParams of every kind that ends within `longest` tokens."""
    return SamplingParams(
        max_tokens=draw(st.sampled_from([0, 1, 2, *range(longest // 4, longest)])),
        min_tokens=draw(st.integers(0, 4)),
        n=draw(st.sampled_from([1, 1, 1, 2, 3])),
        seed=draw(st.integers(0, 3)),
        sampler=draw(st.sampled_from(CHAINS)),
        stop=draw(st.sampled_from([(), (), (), ("ab", "ba"), ("c",)])),
        stop_token_ids=draw(st.sampled_from([(), (), (), (3,)])),
        ignore_eos=draw(st.sampled_from([True, True, False])),
        logprobs=draw(st.sampled_from([None, 0, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, None, 0, 1])),
        on_full=draw(st.sampled_from(["stop", "stop", "slide", "error"])),
    )


@st.composite
def wishes(draw, context, num_ids, most=8):
    """Up to `most` requests; prompts begin alike, so that the prefix cache has work."""
    common = draw(st.lists(st.integers(1, num_ids - 1), min_size=context, max_size=context))
    made = []
    for _ in range(draw(st.sampled_from(range(1, most + 1)))):
        shared = draw(st.sampled_from(range(context // 2)))
        own = draw(st.lists(st.integers(1, num_ids - 1), max_size=max(1, context // 4)))
        prompt = tuple([*common[:shared], *own][:context]) or (1,)
        one = draw(params(context))
        scale = draw(st.sampled_from([None, None, None, None, 0, 1, 1.5, 40]))
        if scale is not None:
            negative = draw(st.sampled_from([None, tuple(own), tuple(common[: context // 2]), tuple(common)])) or None
            one = replace(one, guidance_scale=scale, negative_prompt=negative)
        aborted = draw(st.sampled_from([None, None, None, draw(st.sampled_from(range(30)))]))
        made.append(Wish(prompt, one, draw(st.sampled_from(range(20))), aborted, draw(st.booleans())))
    return made


@st.composite
def configs(draw, **fixed):
    """EngineConfigs with limits that pinch."""
    return EngineConfig(
        max_num_seqs=draw(st.sampled_from(range(1, 9))),
        max_num_batched_tokens=draw(st.sampled_from(range(1, 40))),
        max_prefill_tokens=draw(st.sampled_from(range(1, 20))),
        **fixed,
    )


def result(request):
    """All that a request gave, in a form in which equal means equal bits."""
    output = request.output()
    return repr((output.outputs, output.prompt_logprobs))


@st.composite
def disturbances(draw):
    """(steps that are aborted, steps before which the newest request is preempted, most steps in one go)."""
    steps = st.lists(st.sampled_from(range(60)), max_size=8)
    return draw(steps), draw(steps), draw(st.sampled_from([1, 2, 16]))


class Bench:
    """An engine, and requests that come and go while it makes steps."""

    def __init__(self, config, runner, tokenizer, disturbed=((), (), 1), *, draws_compiled=True):
        self.engine = Engine(config, runner, tokenizer)
        if not draws_compiled:
            self.engine._drawing = None
        self._aborted, self._preempted, self._most_steps = disturbed
        self._config = config
        schedule = self.engine._scheduler.schedule
        self.engine._scheduler.schedule = lambda: self._checked(schedule())

    def _checked(self, shares):
        """What holds of every step."""
        for share, following in pairwise([*shares, None]):
            choice, *negative = share.sequence.pair
            if negative and share.decodes and share.sequence is choice:
                assert following.sequence is negative[0], "both draw at once"
                assert negative[0].window[-1] == choice.window[-1] or not choice.output_token_ids.size
        num_decodes = sum(share.decodes for share in shares)
        num_tokens = sum(share.num_tokens for share in shares)
        assert num_tokens <= self._config.max_num_batched_tokens
        assert len(shares) <= self.engine.num_running <= self._config.max_num_seqs
        assert sum(share.num_rows for share in shares) <= self.engine.runner.max_logits_rows
        if any(share.decodes and share.sequence.request.is_watched for share in shares):
            assert num_tokens - num_decodes <= max(self._config.max_prefill_tokens, 2 * num_decodes)
        return shares

    def request(self, wish):
        """A request that passed the engine's check; None for one that was refused."""
        request = Request(None, list(wish.prompt), wish.params, wish.params.seed, resolve(wish.params), lambda _: None)
        request.is_watched = wish.is_watched
        try:
            if wish.params.is_guided:
                request.negative_token_ids = list(wish.params.negative_prompt or wish.prompt[-1:])
            self.engine.check(request)
        except ParameterError:
            return None
        return request

    def run(self, wishes):
        """Runs all of them to their ends; a request for each."""
        requests = [self.request(wish) for wish in wishes]
        left = [(wish, request) for wish, request in zip(wishes, requests, strict=True) if request is not None]
        step = 0
        while left or self.engine.has_work:
            for wish, request in list(left):
                if wish.arrives <= step:
                    self.engine.add(request)
                    left.remove((wish, request))
            for wish, request in zip(wishes, requests, strict=True):
                if request is not None and request.sequences and wish.aborted == step - wish.arrives:
                    self.engine.abort(request)
            for _ in range(self._preempted.count(step)):
                self.engine._scheduler.preempt_newest()
            self._step(step)
            step += 1
            assert step < MOST_STEPS, "it never ends"
        assert self.engine.pool.num_free == self.engine.pool.num_blocks, "blocks have leaked"
        return requests

    def _step(self, number):
        runner, drawing = self.engine.runner, self.engine._drawing
        name = "execute_through" if hasattr(runner, "execute_through") else "execute"
        if number in self._aborted:
            execute = getattr(runner, name)

            def aborted(*args):
                execute(*args)
                if drawing is not None and number % 2:  # in the first of several steps
                    drawing._context[0]["num_steps"] = 0
                raise AbortedError("the step was aborted")

            setattr(runner, name, aborted)
            try:
                with contextlib.suppress(AbortedError):
                    self.engine.step(self._most_steps)
            finally:
                delattr(runner, name)
        else:
            self.engine.step(self._most_steps)


def check_company(bench, make_alone, wishes):
    """Runs the wishes together on `bench`, each alone on a fresh one, and compares."""
    for wish, request in zip(wishes, bench.run(wishes), strict=True):
        if request is None:
            continue
        alone = make_alone()
        [other] = alone.run([Wish(wish.prompt, wish.params, 0, None, True)])
        assert other is not None
        if wish.aborted is None:
            assert result(request) == result(other)
            continue
        for one, whole in zip(request.output().outputs, other.output().outputs, strict=True):
            assert one.token_ids == whole.token_ids[: len(one.token_ids)]
            assert one.finish_reason in (whole.finish_reason, "aborted")
            if one.logprobs is not None:
                assert repr(one.logprobs) == repr(whole.logprobs[: len(one.logprobs)])
