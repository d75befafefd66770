"""The Python API on the embedded model, and on components of one's own."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import reference
from checkpoints import TALES, golden, golden_directory, write_checkpoint
from fakes import LetterTokenizer, TableRunner, cycle

import nvg
from nvg import LLM, EngineConfig, SamplingParams
from nvg.engine.thread import EngineThread
from nvg.errors import CheckpointError, EngineError, ModelNotFoundError, ParameterError, UnknownNameError
from nvg.progress import Progress

GREEDY = SamplingParams(temperature=0, max_tokens=12)
ENDLESS = SamplingParams(temperature=0, max_tokens=10**6, on_full="slide")


@pytest.fixture(scope="module")
def llm():
    with LLM("tales", threads=2) as llm:
        yield llm


def test_greedy_text_is_that_of_the_reference(llm):
    output = llm.generate("Once upon a time", GREEDY)[0]
    model = reference.load(TALES)
    assert output.token_ids == list(reference.greedy(model, output.prompt_token_ids, 12))
    assert output.text == llm.tokenizer.decode(output.token_ids)
    assert (output.finish_reason, output.prompt) == ("length", "Once upon a time")


@pytest.mark.parametrize("name", ["tales", "long"])
def test_200_greedy_tokens_are_those_of_transformers(name, tmp_path):
    case = golden(name)
    with LLM(str(golden_directory(case, tmp_path))) as llm:
        params = SamplingParams(temperature=0, max_tokens=len(case.greedy), ignore_eos=True)
        drawn = llm.generate(case.greedy_prompt, params)[0].token_ids
    assert len(drawn) == 200
    close = np.flatnonzero(case.greedy_gap <= 1e-3)  # there either of the two may come first, and all after it differ
    certain = close[0] if len(close) else 200
    assert drawn[:certain] == case.greedy[:certain].tolist()
    assert certain > 100


def test_outputs_are_in_the_order_of_the_prompts(llm):
    prompts = ["The king", "A", "There was once a poor woodcutter who lived", "", "The queen said"]
    params = [SamplingParams(max_tokens=n, seed=n, temperature=0.9) for n in (9, 2, 5, 0, 7)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.token_ids) for output in outputs] == [9, 2, 5, 0, 7]
    for prompt, one, output in zip(prompts, params, outputs, strict=True):
        assert llm.generate(prompt, one)[0].token_ids == output.token_ids, "the same alone as in company"


def test_prompts_may_be_token_ids(llm):
    text = llm.generate("The king", GREEDY)[0]
    ids = text.prompt_token_ids
    assert llm.generate([ids, ids[:1]], GREEDY)[0].token_ids == text.token_ids
    assert llm.generate(ids, GREEDY)[0].token_ids == text.token_ids
    assert llm.generate(ids, GREEDY)[0].prompt is None
    assert llm.generate([], GREEDY) == []


def test_an_empty_prompt_begins_from_end_of_text(llm):
    output = llm.generate("", GREEDY)[0]
    assert output.prompt_token_ids == [0]


def test_the_seed_decides_and_is_reported(llm):
    params = SamplingParams(max_tokens=16, temperature=1.5)
    first = llm.generate("The", params)[0]
    assert 0 <= first.seed < 2**53
    again = llm.generate("The", SamplingParams(max_tokens=16, temperature=1.5, seed=first.seed))[0]
    assert again.token_ids == first.token_ids
    assert llm.generate("The", params)[0].token_ids != first.token_ids


def test_stream_gives_a_piece_a_token_and_the_text_of_generate(llm):
    params = SamplingParams(max_tokens=20, seed=3, logprobs=2, n=2)
    stream = llm.stream("The old woman", params)
    pieces = list(stream)
    output = llm.generate("The old woman", params)[0]
    assert stream.seed == 3
    for choice in output.outputs:
        own = [piece for piece in pieces if piece.index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [i for piece in own for i in piece.token_ids] == choice.token_ids
        assert [one for piece in own for one in piece.logprobs] == choice.logprobs
        assert [piece.finish_reason for piece in own] == [None] * 19 + ["length"]


def test_leaving_a_stream_frees_its_slot(llm):
    stream = llm.stream("The", SamplingParams(max_tokens=500, ignore_eos=True))
    assert next(stream).finish_reason is None
    sequence = stream._request.sequences[0]
    stream.close()
    deadline = time.monotonic() + 10
    while llm._engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sequence.finish_reason == "aborted"
    assert llm._engine.pool.num_free == llm._engine.pool.num_blocks


def test_logits_of_all_positions_are_the_references(llm):
    ids = llm.tokenizer.encode("There was once a miller who was poor, but he had one beautiful daughter. " * 6)
    logits = llm.logits(ids)
    assert logits.shape == (len(ids), 4096)
    assert logits.dtype == np.float32
    assert np.abs(logits - reference.logits(reference.load(TALES), ids)).max() < 1e-4


@pytest.mark.parametrize("token_ids", [[], [4096], [-1], [0] * 513])
def test_impossible_logits_are_refused(llm, token_ids):
    with pytest.raises(ValueError, match=r"token"):
        llm.logits(token_ids)


def test_bad_input_names_the_prompt_and_does_no_work(llm):
    steps = llm.stats.steps
    with pytest.raises(ParameterError, match=r"prompt 1: the prompt has .* the context holds 512"):
        llm.generate(["fine", "word " * 600])
    with pytest.raises(ParameterError, match="prompt 2: token id 5000 is not in the vocabulary"):
        llm.generate([[1], [2], [5000]])
    with pytest.raises(UnknownNameError, match="topk"):
        llm.generate("x", SamplingParams(sampler="topkk"))
    with pytest.raises(ParameterError, match="2 prompts and 1 SamplingParams"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(ValueError, match="surrogate"):
        llm.generate("bad \ud800 text")
    assert llm.stats.steps == steps


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 2},
        {"max_tokens": -1}, {"n": 0}, {"seed": -1}, {"seed": 2**64}, {"stop": ""}, {"logprobs": -1}, {"top_k": True},
        {"min_tokens": 1.5}, {"stop_token_ids": [-3]}, {"stop": 5}, {"stop": None}, {"stop_token_ids": 5},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_parameters_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).replace("_ids", "").replace("_token", ".token")):
        SamplingParams(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"dtype": "float7"}, {"kv_dtype": "x"}, {"threads": 0}, {"max_num_seqs": 0}, {"block_size": 20},
        {"block_size": 48}, {"max_model_len": 0}, {"kv_memory": 0}, {"max_num_batched_tokens": 0}, {"model": ""},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_engine_options_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        EngineConfig(**bad)


def test_huge_numbers_cost_nothing(tiny_checkpoint, llm):
    with LLM(str(tiny_checkpoint), max_num_seqs=10**6, kv_memory=10**6) as wide:
        assert wide._engine.runner.max_logits_rows == wide._engine.max_num_seqs == EngineConfig.max_num_batched_tokens
    with pytest.raises(ParameterError, match=r"^n is 1000000; at most \d+ sequences run at once"):
        llm.generate("a", SamplingParams(n=10**6))


def test_an_unknown_option_is_named():
    with pytest.raises(UnknownNameError, match="'max_seqs'; did you mean 'max_num_seqs'"):
        LLM(max_seqs=3)


def test_a_model_that_is_not_there():
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        LLM("no-such-model")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    write_checkpoint(tmp_path, vocab_size=100)
    with pytest.raises(CheckpointError, match="277 ids, the weights have rows for 100"):
        LLM(str(tmp_path))


def test_many_threads_may_call(llm):
    expected = llm.generate("The fox", GREEDY)[0].token_ids
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(llm.generate("The fox", GREEDY)[0].token_ids)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_an_idle_engine_uses_no_cpu(llm):
    llm.generate("The fox", GREEDY)
    time.sleep(0.3)  # workers park
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_progress_is_plain_lines_without_a_terminal(llm, capsys):
    llm.generate(["a", "b"], GREEDY, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("nvg: 2 of 2 prompts, 24 tokens")
    assert "prefill" in lines[-1]
    assert "decode" in lines[-1]


def from_components(**options):
    runner = TableRunner(cycle(7), **options)
    return LLM.from_components(EngineConfig(max_num_seqs=4), runner, LetterTokenizer(7))


def test_progress_is_no_function(llm):
    with pytest.raises(ParameterError, match="it must be True or False"):
        llm.generate("a", progress=print)


def test_components_of_ones_own():
    with from_components() as llm:
        outputs = llm.generate(["a", "c"], SamplingParams(temperature=0, max_tokens=4))
        assert [output.text for output in outputs] == ["bcde", "defa"]
        assert llm.logits([1, 2]).tolist() == cycle(7)[[1, 2]].tolist()
        assert llm._engine.pool.num_free == llm._engine.pool.num_blocks
        runner = llm._engine.runner
    assert runner.closed


def test_logits_wait_for_room_in_the_pool():
    runner = TableRunner(cycle(7))
    llm = LLM.from_components(EngineConfig(max_num_seqs=4, kv_memory=2 * 32 * 4), runner, LetterTokenizer(7))
    runner.hold.clear()
    stream = llm.stream("a", SamplingParams(temperature=0, max_tokens=40))  # both blocks
    results = []
    thread = threading.Thread(target=lambda: results.append(llm.logits([1, 2, 3])))
    thread.start()
    time.sleep(0.05)
    runner.hold.set()
    assert len(list(stream)) == 40
    thread.join(10)
    assert results[0].shape == (3, 7)
    llm.close()


def test_requests_that_have_ended_leave_nothing_for_the_garbage_collector(llm):
    params = [SamplingParams(max_tokens=5, seed=1, n=2), SamplingParams(max_tokens=5, guidance_scale=2.0), GREEDY]
    llm.generate(["The king"] * 3, params)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        llm.generate(["The king"] * 3, params)
        for one in params:
            list(llm.stream("The fox", one))
            next(llm.stream("The fox", one))
        gc.collect()
        kinds = {type(one).__name__ for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kinds & {"Request", "ChoiceSequence", "Sequence", "Chain", "TextStream", "Stream"}


def test_a_closed_llm_says_so():
    llm = from_components()
    llm.generate("a", GREEDY)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate("a")
    with pytest.raises(EngineError, match="closed"):
        llm.logits([1])


def test_close_ends_what_runs():
    llm = from_components()
    llm._engine.runner.hold.clear()  # the runner hangs in a step until it is aborted
    outputs = []
    thread = threading.Thread(target=lambda: outputs.extend(llm.generate("a", GREEDY)))
    thread.start()
    assert llm._engine.runner.runs.wait(10)
    llm.close()
    thread.join(10)
    assert outputs[0].finish_reason == "aborted"


def test_aborting_leaves_the_step_of_others_alone():
    llm = from_components()
    runner = llm._engine.runner
    runner.hold.clear()
    outputs = []
    thread = threading.Thread(target=lambda: outputs.extend(llm.generate("a", GREEDY)))
    thread.start()
    assert llm._engine.runner.runs.wait(10)
    stream = llm.stream("b", SamplingParams(max_tokens=50))
    llm._thread.abort([stream._request])
    time.sleep(0.05)
    runner.hold.set()
    assert [piece.finish_reason for piece in stream] == ["aborted"], "before it had a step"
    thread.join(10)
    assert outputs[0].text == "bcdefabcdefa"
    assert len(runner.batches) == 12, "no step was made twice"
    llm.close()


def test_aborting_the_only_request_cuts_the_step_short():
    llm = from_components()
    runner = llm._engine.runner
    runner.hold.clear()
    stream = llm.stream("b", SamplingParams(max_tokens=50))
    assert llm._engine.runner.runs.wait(10)
    llm._thread.abort([stream._request])
    assert [piece.finish_reason for piece in stream] == ["aborted"]
    assert not runner.batches
    runner.hold.set()
    assert llm.generate("a", GREEDY)[0].text == "bcdefabcdefa"
    llm.close()


def test_a_fault_in_the_runner_ends_requests_with_its_message():
    llm = from_components()

    def broken(batch):
        raise RuntimeError("the machine is on fire")

    llm._engine.runner.execute = broken
    output = llm.generate("a")[0]
    assert output.finish_reason == "error"
    assert "on fire" in output.error
    with pytest.raises(EngineError, match="on fire"):
        llm.generate("a")
    llm.close()


def test_a_fault_in_the_runner_leaves_nobody_waiting():
    llm = from_components()
    runner = llm._engine.runner
    runner.hold.clear()
    streams = [llm.stream("a", ENDLESS) for _ in range(9)]  # more than run at once
    assert runner.runs.wait(10)
    failed = []

    def logits():
        with pytest.raises((EngineError, ZeroDivisionError)) as error:
            llm.logits([1, 2])
        failed.append(str(error.value))

    thread = threading.Thread(target=logits)
    thread.start()
    while not llm._thread._commands.qsize():
        time.sleep(0.001)

    def broken(batch):
        raise ZeroDivisionError

    runner.execute = broken
    runner.hold.set()
    ends = [list(stream)[-1] for stream in streams]
    assert {end.finish_reason for end in ends} == {"error"}
    assert {end.error for end in ends} == {"the engine stopped: ZeroDivisionError"}
    thread.join(10)
    assert failed
    for call in (llm.generate, llm.stream):
        with pytest.raises(EngineError, match="the engine stopped earlier: ZeroDivisionError"):
            call("a")
    llm.close()


def test_requests_that_wait_when_it_is_closed_end():
    llm = from_components()
    runner = llm._engine.runner
    runner.hold.clear()
    first = llm.stream("a", ENDLESS)
    assert runner.runs.wait(10)
    waiting = [llm.stream("b", ENDLESS) for _ in range(9)]
    llm.close()
    assert [piece.finish_reason for stream in (first, *waiting) for piece in stream] == ["aborted"] * 10


def interrupt_when(condition):
    """Ctrl-C as soon as that holds."""

    def wait():
        while not condition():
            time.sleep(0.001)
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


def test_ctrl_c_returns_what_is_finished():
    with from_components() as llm:
        interrupt_when(lambda: llm.stats.steps > 30)
        outputs = llm.generate(["a", "b", "c"], [GREEDY, ENDLESS, GREEDY])
        assert [output.finish_reason for output in outputs] == ["length", "aborted", "length"]
        assert outputs[0].text == "bcdefabcdefa"
        assert outputs[1].text.startswith("cdefab")
        assert not llm._engine.has_work
        assert llm.generate("a", GREEDY)[0].text == "bcdefabcdefa"


def test_ctrl_c_when_an_output_was_taken_and_not_counted(monkeypatch):
    get, lost = nvg.llm._get, []

    def losing(pieces, *tick):
        item = get(pieces, *tick)
        if not lost:
            lost.append(item)
            raise KeyboardInterrupt
        return item

    monkeypatch.setattr("nvg.llm._get", losing)
    with from_components() as llm:
        outputs = llm.generate(["a", "b"], GREEDY)
    assert lost == [0]
    assert outputs[0].finish_reason == "length"


@pytest.mark.parametrize("comes", ["before", "after"])
def test_ctrl_c_while_the_requests_are_submitted(monkeypatch, comes):
    submit = EngineThread.submit

    def interrupted(thread, requests):
        if comes == "after":
            submit(thread, requests)
        raise KeyboardInterrupt

    monkeypatch.setattr(EngineThread, "submit", interrupted)
    with from_components() as llm:
        outputs = llm.generate(["a", "b"], ENDLESS)
    assert [output.finish_reason for output in outputs] == ["aborted", "aborted"]


def test_ctrl_c_while_the_prompts_are_encoded(monkeypatch):
    encode = LetterTokenizer.encode

    def interrupted(tokenizer, text, **options):
        if text == "b":
            signal.raise_signal(signal.SIGINT)
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(LetterTokenizer, "encode", interrupted)
    with from_components() as llm:
        outputs = llm.generate(["a", "b", "c"], ENDLESS)
        assert [output.finish_reason for output in outputs] == ["aborted"] * 3
        assert llm.stats.steps == 0
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["b", "b"], ENDLESS)


def test_ctrl_c_a_second_time_raises(monkeypatch):
    ticks = []
    monkeypatch.setattr(Progress, "tick", lambda bar: ticks.append(True))  # the caller is waiting
    llm = from_components()
    runner = llm._engine.runner
    runner.hold.clear()
    aborts = []
    runner.abort = lambda: aborts.append(True)  # a step that does not hear of it
    interrupt_when(lambda: ticks)
    interrupt_when(lambda: aborts)
    with pytest.raises(KeyboardInterrupt):
        llm.generate("a", ENDLESS)
    runner.hold.set()
    llm.close()


def test_ctrl_c_ends_a_stream():
    with from_components() as llm:
        interrupt_when(lambda: llm.stats.steps > 30)
        with pytest.raises(KeyboardInterrupt):
            for _ in llm.stream("a", ENDLESS):
                pass
        while llm._engine.has_work:
            time.sleep(0.001)


def test_a_stream_that_was_never_read_ends_when_it_is_closed():
    with from_components() as llm:
        stream = llm.stream("a", ENDLESS)
        stream.close()
        while llm._engine.has_work:
            time.sleep(0.001)
        assert list(stream) == []


def test_a_loop_of_ones_own():
    with from_components() as llm, from_components() as other:
        prompts, params = ["a", "b", "c"], [GREEDY, SamplingParams(n=2, seed=1), SamplingParams(max_tokens=0, seed=2)]
        pieces = []
        ids = [llm.engine.add_request("a", GREEDY, pieces.append)]
        ids += [llm.engine.add_request(prompt, one) for prompt, one in zip(prompts[1:], params[1:], strict=True)]
        outputs = {}
        while not llm.engine.is_finished():
            outputs.update(llm.engine.step())
        expected = other.generate(prompts, [replace(GREEDY, seed=outputs[ids[0]].seed), *params[1:]])
        assert [outputs[i] for i in ids] == expected
        assert "".join(piece.text for piece in pieces) == outputs[ids[0]].text
        assert llm.engine.step() == []


def test_abort_in_a_loop_of_ones_own():
    with from_components() as llm:
        one, two = llm.engine.add_request("a", ENDLESS), llm.engine.add_request("b", ENDLESS)
        for _ in range(5):
            assert llm.engine.step() == []
        llm.engine.abort(one)
        [(request_id, output)] = llm.engine.step()
        assert (request_id, output.finish_reason, output.text) == (one, "aborted", "bcdef")
        llm.engine.abort(one)
        llm.engine.abort(two)
        assert not llm.engine.is_finished()
        assert [request_id for request_id, _ in llm.engine.step()] == [two]
        assert llm.engine.is_finished()


def test_a_loop_and_the_thread_do_not_mix():
    with from_components() as llm:
        llm.engine.add_request("a", GREEDY)
        for call in (llm.generate, llm.stream):
            with pytest.raises(EngineError, match=r"a loop over llm.engine"):
                call("a")
        with pytest.raises(EngineError, match=r"a loop over llm.engine"):
            llm.logits([1])
        llm.engine.step()
    with pytest.raises(EngineError, match="closed"):
        llm.engine.step()
    with from_components() as llm:
        llm.generate("a", GREEDY)
        with pytest.raises(EngineError, match="its own thread"):
            llm.engine.add_request("a")


def test_two_at_once(llm):
    prompts = ["The king", "Once upon a time", "The fox"]
    params = SamplingParams(max_tokens=30, seed=1, logprobs=1)
    expected = [llm.generate(prompt, params)[0].outputs for prompt in prompts]
    with LLM("tales", threads=1) as other:
        results = {}
        threads = [
            threading.Thread(target=lambda one=one: results.update({one: one.generate(prompts, params)}))
            for one in (llm, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outputs in results.values():
            assert [output.outputs for output in outputs] == expected


def test_a_shared_beginning_is_computed_once(llm):
    beginning = llm.tokenizer.encode("There was once a miller who was poor, but he had one beautiful daughter. " * 4)
    first = llm.generate([*beginning, 7], GREEDY)[0]
    before = llm.stats.prefill_tokens
    second = llm.generate([*beginning, 8], GREEDY)[0]
    assert second.num_cached_tokens == len(beginning) // 32 * 32 > first.num_cached_tokens
    assert llm.stats.prefill_tokens - before == len(beginning) + 1 - second.num_cached_tokens


def test_prompt_logprobs_are_those_of_the_logits(llm):
    output = llm.generate("The old king had a daughter", SamplingParams(max_tokens=0, prompt_logprobs=1))[0]
    ids = output.prompt_token_ids
    logits = llm.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert output.prompt_logprobs[0] is None
    for position, one in enumerate(output.prompt_logprobs[1:], 1):
        assert one.token_id == ids[position]
        assert one.logprob == pytest.approx(expected[position - 1, ids[position]], abs=1e-5)
        assert list(one.top) == [int(expected[position - 1].argmax())]


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, **options
    )


def test_import_loads_neither_numba_nor_numpy():
    done = python("import sys, nvg; nvg.SamplingParams; nvg.hookimpl; print({'numba', 'numpy'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_an_unclosed_llm_does_not_keep_the_program_from_ending():
    done = python(
        """
        import nvg
        llm = nvg.LLM()
        stream = llm.stream("The", nvg.SamplingParams(max_tokens=500, ignore_eos=True))
        print(next(stream).token_ids != [])
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_child_is_told_to_make_its_own():
    done = python(
        """
        import os, nvg, warnings
        warnings.simplefilter("ignore")  # Python's own warning about threads
        llm = nvg.LLM()
        llm.generate("The", nvg.SamplingParams(max_tokens=1))
        own = nvg.LLM()
        own.engine.add_request("The")
        own.engine.step()
        if os.fork() == 0:
            calls = (llm.generate, llm.stream, own.engine.add_request, lambda _: llm.logits([1]))
            for call in (*calls, lambda _: own.engine.step(), lambda _: own.engine.abort(0)):
                try:
                    call("The")
                except nvg.errors.EngineError as error:
                    print(error, flush=True)
            llm.close()
            own.close()
            with nvg.LLM() as new:
                output = new.generate("The", nvg.SamplingParams(max_tokens=3, ignore_eos=True))[0]
                print(len(output.token_ids), flush=True)
            os._exit(0)
        os.wait()
        """
    )
    *errors, last = done.stdout.splitlines()
    assert len(errors) == 6, done.stderr
    assert all("before a fork" in error for error in errors)
    assert last == "3", "one that it makes itself works"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sampler_that_forks_leaves_no_process_behind():
    done = python(
        """
        import os, nvg, warnings
        warnings.simplefilter("ignore")  # Python's own warning about threads

        class Forks:
            def apply(self, logits, token_ids, state):
                if state.step == 1 and (child := os.fork()):
                    print(os.waitpid(child, 0)[0] == child, flush=True)

        with nvg.LLM() as llm:
            params = nvg.SamplingParams(sampler=[Forks(), "greedy"], max_tokens=3)
            print(len(llm.generate("The", params)[0].token_ids), flush=True)
        """
    )
    assert done.stdout == "True\n3\n", done.stderr


def test_the_public_surface_is_sorted_and_complete():
    assert sorted(nvg.__all__) == sorted(set(nvg.__all__))
    for name in nvg.__all__:
        assert getattr(nvg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        nvg.LLMM  # noqa: B018
