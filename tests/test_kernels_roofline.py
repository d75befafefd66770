"""The ceilings' jobs do what they are timed for: every byte is read, every instruction runs on every thread."""

import numpy as np
import pytest

from nvg.bench.ceilings import Ceilings, buffer_bytes, ceilings
from nvg.kernels import roofline
from nvg.kernels.roofline import ARITHMETIC, CHAINS, LINE_BYTES, ROOFLINE_CONTEXT, STEP_LINES
from nvg.runtime import cores, cpu
from nvg.runtime.team import Team


def aligned(num_bytes):
    buffer = np.zeros(num_bytes + LINE_BYTES, np.uint8)
    start = -buffer.ctypes.data % LINE_BYTES
    return buffer[start : start + num_bytes]


class Run:
    """A job's context and memory, run by a team."""

    def __init__(self, num_threads, num_lines=STEP_LINES, prefetch_bytes=0, rounds=1):
        self.num_threads = num_threads
        self.data = aligned(num_lines * LINE_BYTES)
        self.operands = aligned(2 * LINE_BYTES)
        self.sinks = aligned(2 * LINE_BYTES * num_threads).view(np.uint32).reshape(num_threads, -1)
        self.context = np.zeros(1, ROOFLINE_CONTEXT)
        addresses = [array.ctypes.data for array in (self.data, self.operands, self.sinks)]
        self.context[0] = (addresses[0], num_lines, prefetch_bytes, rounds, *addresses[1:])

    def __call__(self, job):
        team = Team(self.num_threads)
        try:
            team.run(job.address, self.context.ctypes.data)
        finally:
            team.close()

    def results(self):
        """The lanes that each thread left: uint32 (threads, lanes)."""
        return self.sinks[:, : cpu.features().vector_floats]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("prefetch_bytes", [0, 4096])
def test_every_byte_is_read_once(num_threads, prefetch_bytes):
    run = Run(num_threads, num_lines=STEP_LINES * 13, prefetch_bytes=prefetch_bytes)
    run.data[:] = np.random.default_rng(0).integers(0, 256, run.data.size, np.uint8)
    run(roofline.read_memory)
    lanes = np.bitwise_xor.reduce(run.data.view(np.uint32).reshape(-1, cpu.features().vector_floats))
    assert np.array_equal(np.bitwise_xor.reduce(run.results()), lanes)
    assert (run.results() != 0).any(axis=1).all(), "each thread has a share"


def test_a_thread_without_a_share_reads_nothing():
    run = Run(3, num_lines=STEP_LINES)
    run.data.view(np.uint32)[:] = np.arange(run.data.size // 4)
    run.sinks[:] = 7
    run(roofline.read_memory)
    assert (run.results() == 7).all(axis=1).sum() == 2


def chains(start, step, rounds):
    """The xor of the bits of CHAINS accumulators that begin at 1 .. CHAINS, each stepped `rounds` times."""
    total = np.uint32(0)
    for number in range(1, CHAINS + 1):
        value = start(number)
        for _ in range(rounds):
            value = step(value)
        total ^= value.view(np.uint32)
    return total


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("rounds", [1, 2, 9, 100])
def test_multiply_adds_are_made_as_often_as_counted(num_threads, rounds):
    run = Run(num_threads, rounds=rounds)
    operands = run.operands.view(np.float32)
    operands[:16], operands[16:] = 0.5, 0.25  # exact: fused or not makes no difference
    run(ARITHMETIC[roofline.FMA])
    half, quarter = np.float32(0.5), np.float32(0.25)
    expected = chains(np.float32, lambda value: np.float32(value * half + quarter), rounds)
    if rounds <= 9:  # later the sums round
        assert (run.results() == expected).all()
    else:
        assert len(np.unique(run.results())) == 1


@pytest.mark.skipif(roofline.INT8_DOT not in ARITHMETIC, reason="this CPU has no dot product of bytes")
@pytest.mark.parametrize("rounds", [1, 9, 1000])
def test_byte_dots_are_made_as_often_as_counted(rounds):
    run = Run(2, rounds=rounds)
    run.operands[:] = np.random.default_rng(1).integers(0, 256, 128, np.uint8)
    run(ARITHMETIC[roofline.INT8_DOT])
    kind, lanes = cpu.features().int8_dot, cpu.features().vector_floats
    first, second = run.operands[: 4 * lanes], run.operands[64 : 64 + 4 * lanes].view(np.int8).astype(np.int32)
    results = []
    for number in range(1, CHAINS + 1):
        value = np.full(lanes, number, np.int32)
        if kind == "pmaddwd":
            pairs = run.operands[64 : 64 + 4 * lanes].view(np.int16).astype(np.int32).reshape(lanes, 2)
            for _ in range(rounds):
                value = value + (value.view(np.int16).reshape(lanes, 2) * pairs).sum(1, dtype=np.int32)
        else:
            first = first.view(np.int8) if kind == "sdot" else first
            value += rounds * (first.astype(np.int32) * second).reshape(lanes, 4).sum(1, dtype=np.int32)
        results.append(value)
    assert (run.results().view(np.int32) == np.bitwise_xor.reduce(results)).all()


@pytest.mark.skipif(roofline.BF16_DOT not in ARITHMETIC, reason="this CPU has no bfloat16 dot product")
@pytest.mark.parametrize("rounds", [1, 9, 1000])
def test_bfloat16_dots_are_made_as_often_as_counted(rounds):
    run = Run(2, rounds=rounds)
    run.operands[:64].view(np.uint16)[:] = 0x3F80  # 1.0
    run.operands[64:].view(np.uint16)[:] = 0x4000  # 2.0
    run(ARITHMETIC[roofline.BF16_DOT])
    expected = chains(np.float32, lambda value: np.float32(value + 4), rounds)
    assert (run.results() == expected).all()


def test_operations_are_two_for_each_multiply_add_of_each_lane():
    lanes = cpu.features().vector_floats
    assert roofline.operations_per_round(roofline.FMA) == 2 * CHAINS * lanes
    assert roofline.operations_per_round(roofline.BF16_DOT) == 2 * CHAINS * 2 * lanes
    if roofline.INT8_DOT in ARITHMETIC:
        products = 2 if cpu.features().int8_dot == "pmaddwd" else 4
        assert roofline.operations_per_round(roofline.INT8_DOT) == 2 * CHAINS * products * lanes


def test_the_instruction_for_a_dtype_is_one_that_the_machine_has(monkeypatch):
    assert roofline.instruction_for("float32") == roofline.FMA
    has = {name: job for name, job in ARITHMETIC.items() if name == roofline.FMA}
    monkeypatch.setattr(roofline, "ARITHMETIC", {**has, roofline.BF16_DOT: None})
    assert roofline.instruction_for("bfloat16") == roofline.BF16_DOT
    assert roofline.instruction_for("int8") == roofline.FMA
    monkeypatch.setattr(roofline, "ARITHMETIC", {**has, roofline.INT8_DOT: None})
    assert roofline.instruction_for("bfloat16") == roofline.FMA
    assert roofline.instruction_for("int8") == roofline.instruction_for("int4") == roofline.INT8_DOT


def test_ceilings_are_rates():
    machine = Ceilings(2, 10_000_000)
    try:
        assert machine.read_bytes_s() > 1e6
        for instruction in ARITHMETIC:
            assert machine.operations_s(instruction) > 1e6
    finally:
        machine.close()


def test_the_buffer_is_larger_than_the_caches_and_leaves_half_of_the_memory(monkeypatch):
    monkeypatch.setattr(cores, "available_memory", lambda: 10**12)
    monkeypatch.setattr(cores, "last_level_cache_bytes", lambda: 0)
    assert buffer_bytes() == 2**28
    monkeypatch.setattr(cores, "last_level_cache_bytes", lambda: 2**30)
    assert buffer_bytes() == 2**32
    monkeypatch.setattr(cores, "available_memory", lambda: 10**6)
    assert buffer_bytes() == 500_000
    with ceilings(1) as machine:
        assert machine.read_bytes_s() > 1e6
    monkeypatch.setattr(cores, "available_memory", lambda: 0)  # the system doesn't say
    assert buffer_bytes() == 2**32
