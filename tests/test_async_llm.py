"""AsyncLLM: streams for many tasks, and what cancelling one leaves behind."""

import asyncio
import gc
import time

import pytest
from fakes import LetterTokenizer, TableRunner, cycle

from nvg import LLM, AsyncLLM, EngineConfig, SamplingParams
from nvg.errors import EngineError, ParameterError

GREEDY = SamplingParams(temperature=0, max_tokens=12, seed=0)
ENDLESS = SamplingParams(temperature=0, max_tokens=10**6, on_full="slide")


@pytest.fixture
def llm():
    llm = LLM.from_components(EngineConfig(max_num_seqs=4), TableRunner(cycle(7)), LetterTokenizer(7))
    yield AsyncLLM.from_llm(llm)
    llm.close()


async def until(condition):
    """Wait, without keeping the loop from working."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def is_idle(llm):
    engine = llm.llm._engine
    return not engine.has_work and engine.pool.num_free == engine.pool.num_blocks


def test_a_stream_gives_a_piece_a_token(llm):
    async def main():
        stream = llm.stream("a", GREEDY)
        pieces = [piece async for piece in stream]
        assert stream.prompt_token_ids == [1]
        return pieces

    pieces = asyncio.run(main())
    assert "".join(piece.text for piece in pieces) == "bcdefabcdefa"
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]


def test_fifty_streams_at_once(llm):
    async def one(letter):
        return "".join([piece.text async for piece in llm.stream(letter, GREEDY)])

    async def main():
        return await asyncio.gather(*[one("abcdef"[i % 6]) for i in range(50)])

    texts = asyncio.run(main())
    assert texts == [output.text for output in llm.llm.generate(["abcdef"[i % 6] for i in range(50)], GREEDY)]


def test_generate_is_that_of_llm(llm):
    prompts, params = ["a", "b", "c"], [GREEDY, SamplingParams(n=2, seed=1), SamplingParams(max_tokens=0, seed=2)]
    assert asyncio.run(llm.generate(prompts, params)) == llm.llm.generate(prompts, params)
    with pytest.raises(ParameterError, match="prompt 1: "):
        asyncio.run(llm.generate([[1], [9]]))


def test_choices_are_interleaved(llm):
    async def main():
        return [piece async for piece in llm.stream("a", SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True))]

    pieces = asyncio.run(main())
    assert [piece.index for piece in pieces] == [0, 1, 2] * 4


def test_a_cancelled_task_frees_its_slot(llm):
    pieces = []

    async def read(stream):
        async for piece in stream:
            pieces.append(piece)

    async def main():
        stream = llm.stream("a", ENDLESS)
        task = asyncio.create_task(read(stream))
        await until(lambda: pieces)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: is_idle(llm))
        assert stream._request.sequences[0].finish_reason == "aborted"

    asyncio.run(main())


def test_cancelling_is_heard_before_the_next_step(llm):
    runner = llm.llm._engine.runner

    async def main():
        other = llm.stream("b", ENDLESS)
        await anext(other)
        runner.hold.clear()
        stream = llm.stream("a", ENDLESS)
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        num_steps = len(runner.batches)
        runner.hold.set()
        await until(lambda: len(runner.batches) > num_steps + 3)
        assert all(len(batch.context_lens) == 1 for batch in runner.batches[num_steps + 2 :])
        await other.aclose()

    asyncio.run(main())


def test_a_loop_that_is_left_frees_its_slot(llm):
    async def main():
        async for _ in llm.stream("a", ENDLESS):
            break
        gc.collect()
        await until(lambda: is_idle(llm))

    asyncio.run(main())


def test_a_stream_that_nobody_reads_ends_with_its_loop(llm):
    async def main():
        return llm.stream("a", ENDLESS)

    stream = asyncio.run(main())
    stream.close()
    asyncio.run(until(lambda: is_idle(llm)))
    with pytest.raises(StopAsyncIteration):
        asyncio.run(anext(stream))


def test_cancelling_generate_ends_all_of_it(llm):
    async def main():
        task = asyncio.create_task(llm.generate(["a"] * 9, ENDLESS))
        await until(lambda: llm.llm._engine.num_waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: is_idle(llm))

    asyncio.run(main())


def test_one_loop_after_another(llm):
    for _ in range(2):
        assert asyncio.run(llm.generate("a", GREEDY))[0].text == "bcdefabcdefa"


def test_it_loads_a_model_and_closes():
    async def main():
        async with AsyncLLM("tales", threads=1) as llm:
            output = (await llm.generate("The king", GREEDY))[0]
            text = "".join([piece.text async for piece in llm.stream("The king", GREEDY)])
            assert text == output.text
        with pytest.raises(EngineError, match="closed"):
            llm.stream("The king")

    asyncio.run(main())
