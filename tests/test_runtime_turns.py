"""A lock that waiting threads get in the order in which they came."""

import threading
import time
import types

import pytest

from nvg.runtime.turns import Turns


def wait_until(condition):
    while not condition():
        time.sleep(0.001)


def test_those_who_wait_come_in_their_order():
    turns, order, threads = Turns(), [], []

    def take(number):
        with turns:
            order.append(number)

    with turns:
        for number in range(5):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            wait_until(lambda: len(turns._waiting) == len(threads))
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2, 3, 4]


def test_who_comes_back_at_once_does_not_overtake():
    turns, order = Turns(), []

    def take(name, rounds):
        for _ in range(rounds):
            with turns:
                order.append(name)
                wait_until(lambda: turns._waiting or len(order) >= 19)

    threads = [threading.Thread(target=take, args=(name, 10)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "".join(order) in ("ab" * 10, "ba" * 10)


def test_only_one_has_it():
    turns, inside, most = Turns(), [0], []

    def take():
        for _ in range(200):
            with turns:
                inside[0] += 1
                most.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 800


class InterruptedByTestError(Exception):
    pass


@pytest.mark.parametrize("is_late", [False, True])
def test_who_is_interrupted_while_waiting_leaves_it_to_the_others(monkeypatch, is_late):
    """Early: before it was handed over; late: just after, and then it must be passed on."""
    turns = Turns()

    class Interrupting:
        """A lock whose second acquisition ends with an exception, as a signal's handler would."""

        def __init__(self):
            self._lock, self._count = threading.Lock(), 0

        def acquire(self):
            self._count += 1
            if self._count == 2 and not is_late:
                raise InterruptedByTestError
            self._lock.acquire()
            if self._count == 2:
                raise InterruptedByTestError

        def release(self):
            self._lock.release()

    def wait_in_vain():
        with pytest.raises(InterruptedByTestError), turns:
            pass

    monkeypatch.setattr("nvg.runtime.turns.threading", types.SimpleNamespace(Lock=Interrupting))
    thread = threading.Thread(target=wait_in_vain)
    with turns:
        thread.start()
        wait_until(lambda: turns._waiting if is_late else not thread.is_alive())
    thread.join(60)
    assert not turns._waiting
    assert not turns._taken
