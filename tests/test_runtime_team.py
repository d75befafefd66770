"""The thread team and its barrier, without any model."""

import os
import threading
import time

import numpy as np
import pytest
from numba import carray

from nvg.kernels.simd import int64_at
from nvg.runtime.atomics import atomic_add
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


meet = Job(_meet_job)
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


def test_two_teams_and_many_callers_share_the_machine():
    teams = [Team(2), Team(2)]
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


def test_closing_ends_the_threads_and_twice_does_no_harm():
    team = Team(3)
    assert all(thread.is_alive() for thread in team._threads)
    team.close()
    team.close()
    assert not any(thread.is_alive() for thread in team._threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_that_share_a_core_move_apart_and_keep_their_mask():
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two cores")
    team = Team(2)
    worker = team._threads[0].native_id
    words = np.zeros(MEETING_WORDS + ROUNDS + 1, np.int64)
    try:
        for thread in (0, worker):
            os.sched_setaffinity(thread, {min(allowed)})
        words[:] = 0
        team.run(meet.address, words.ctypes.data)
        assert team._cpus.tolist() == [min(allowed)] * 2, "there is nowhere else to go"
    finally:
        for thread in (0, worker):
            os.sched_setaffinity(thread, allowed)
    apart = 0
    for _ in range(200):
        words[:] = 0
        team.run(meet.address, words.ctypes.data)
        apart += team._cpus[0] != team._cpus[1]
    assert apart > 150
    assert os.sched_getaffinity(worker) == allowed
    team.close()
