"""The thread team and its barrier, without any model."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from llvmlite import binding, ir
from numba import carray

from nvg.errors import EngineError
from nvg.kernels.simd import int64_at
from nvg.runtime.atomics import atomic_add, atomic_load, emit_pause, yield_core
from nvg.runtime.compile_cache import Job
from nvg.runtime.team import ABORT, MEETING_WORDS, Team, barrier

ROUNDS = 200


def _meet_job(context, thread, num_threads):
    """Words: the meeting's, then one counter for each round: all threads must see a round's full count after it."""
    words = carray(int64_at(context), MEETING_WORDS + ROUNDS + 1)
    for round_number in range(ROUNDS):
        counter = MEETING_WORDS + round_number
        atomic_add(words, counter, 1)
        if barrier(words, num_threads):
            return
        if words[counter] != num_threads:
            atomic_add(words, MEETING_WORDS + ROUNDS, 1)  # a failure


def _one_stays_away_job(context, thread, num_threads):
    """Thread 1 leaves without meeting the others, who must leave too once the job is aborted."""
    words = carray(int64_at(context), MEETING_WORDS + 1)
    if thread == 1:
        atomic_add(words, ABORT, 1)
        return
    if barrier(words, num_threads):
        atomic_add(words, MEETING_WORDS, 1)


def _wait_for_abort_job(context, thread, num_threads):
    words = carray(int64_at(context), MEETING_WORDS + 1)
    atomic_add(words, MEETING_WORDS, 1)
    while atomic_load(words, ABORT) == 0:
        yield_core()


meet = Job(_meet_job)
wait_for_abort = Job(_wait_for_abort_job)
one_stays_away = Job(_one_stays_away_job)


@pytest.fixture(params=[1, 2, 3])
def team(request):
    team = Team(request.param)
    yield team
    team.close()


def test_all_threads_meet_at_each_barrier(team):
    words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
    team.run(meet.address, words.ctypes.data)
    assert (words[MEETING_WORDS:-1] == team.num_threads).all()
    assert words[-1] == 0


def test_a_thread_that_leaves_after_an_abort_leaves_nobody_waiting():
    team = Team(3)
    words = np.zeros(MEETING_WORDS + 1, np.int64)
    team.run(one_stays_away.address, words.ctypes.data)
    assert words[-1] == 2
    team.close()


def test_a_parked_team_wakes_up_again():
    team = Team(2)
    for _ in range(3):
        words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
        team.run(meet.address, words.ctypes.data)
        assert words[MEETING_WORDS] == 2
        time.sleep(0.1)
    team.close()


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (1, 1)])
def test_many_callers_and_teams_take_turns(sizes):
    teams = [Team(size) for size in sizes]
    failures = []

    def work(team):
        for _ in range(20):
            words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
            team.run(meet.address, words.ctypes.data)
            failures.append(words[-1])

    threads = [threading.Thread(target=work, args=(team,)) for team in teams for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [0] * 80
    for team in teams:
        team.close()


def workers(team):
    return team._threads._threads


def test_teams_of_one_size_share_threads_until_the_last_is_closed():
    one, other, larger = Team(2), Team(2), Team(3)
    assert workers(one) is workers(other)
    assert not set(workers(one)) & set(workers(larger))
    one.close()
    assert all(thread.is_alive() for thread in workers(other))
    words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
    other.run(meet.address, words.ctypes.data)
    assert words[MEETING_WORDS] == 2
    with pytest.raises(EngineError, match="closed"):
        one.run(meet.address, words.ctypes.data)
    one.close()  # again, and it does not count
    assert all(thread.is_alive() for thread in workers(other))
    other.close()
    assert not any(thread.is_alive() for thread in workers(other))
    assert all(thread.is_alive() for thread in workers(larger))
    larger.close()
    fresh = Team(2)
    assert all(thread.is_alive() for thread in workers(fresh))
    fresh.close()


def test_a_team_waits_for_anothers_job_and_closing_waits_for_ones_own():
    one, other = Team(2), Team(2)
    held = np.zeros(MEETING_WORDS + 1, np.int64)
    running = threading.Thread(target=one.run, args=(wait_for_abort.address, held.ctypes.data))
    running.start()
    while held[MEETING_WORDS] < 2:
        time.sleep(0.001)
    words, ended = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64), []
    waiting = threading.Thread(target=other.run, args=(meet.address, words.ctypes.data))
    waiting.start()
    closing = threading.Thread(target=lambda: ended.append(one.close()))
    closing.start()
    time.sleep(0.05)
    assert (words[MEETING_WORDS], ended) == (0, [])
    held[ABORT] = 1  # which is not a word of the other's meeting
    for thread in (running, waiting, closing):
        thread.join(60)
    assert words[MEETING_WORDS:].tolist() == [2] * ROUNDS + [0]
    assert ended == [None]
    other.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_and_can_make_threads_of_its_own():
    code = """
        import os, signal, sys, warnings
        import numpy as np
        from nvg.runtime.team import MEETING_WORDS, Team
        sys.path.insert(0, sys.argv[1])
        from test_runtime_team import ROUNDS, meet
        warnings.simplefilter("ignore")  # Python's own warning about threads
        team = Team(2)
        words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
        team.run(meet.address, words.ctypes.data)
        if os.fork() == 0:
            signal.alarm(60)  # the end, if it waits for threads that it has not
            try:
                team.run(meet.address, words.ctypes.data)
            except Exception as error:
                print(error)
            team.close()
            own = Team(2)
            words[:] = 0
            own.run(meet.address, words.ctypes.data)
            own.close()
            print(words[MEETING_WORDS], flush=True)
            os._exit(0)
        print(os.wait()[1])
        team.run(meet.address, words.ctypes.data)
        team.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert "before a fork" in first
    assert others == ["2", "0"]


def test_closing_ends_the_threads_and_twice_does_no_harm():
    team = Team(3)
    assert all(thread.is_alive() for thread in workers(team))
    team.close()
    team.close()
    assert not any(thread.is_alive() for thread in workers(team))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_that_share_a_core_move_apart_and_keep_their_mask():
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two cores")
    team = Team(2)
    worker = workers(team)[0].native_id
    words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
    try:
        for thread in (0, worker):
            os.sched_setaffinity(thread, {min(allowed)})
        words[:] = 0
        team.run(meet.address, words.ctypes.data)
        assert team._threads._cpus.tolist() == [min(allowed)] * 2, "there is nowhere else to go"
        assert team.patience == 0, "waiting would keep the other from coming"
    finally:
        for thread in (0, worker):
            os.sched_setaffinity(thread, allowed)
    apart = 0
    for _ in range(200):
        words[:] = 0
        team.run(meet.address, words.ctypes.data)
        apart += team._threads._cpus[0] != team._threads._cpus[1] and team.patience > 0
    assert apart > 150
    assert os.sched_getaffinity(worker) == allowed
    team.close()


def test_a_pause_is_an_instruction_on_arm_too():
    """aarch64, cross-compiled."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module("pause")
    module.triple = "aarch64-unknown-linux-gnu"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "wait")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit_pause(builder)
    builder.ret_void()
    machine = binding.Target.from_triple(module.triple).create_target_machine(cpu="generic", opt=3)
    assert "\tisb\n" in machine.emit_assembly(binding.parse_assembly(str(module)))
