"""The clock of `--max_minutes`: on a clock of its own, where work takes what the test says."""

import subprocess
import sys
import time

import pytest

from processes.deadline import ENDING, OF_THE_START, Deadline
from utils import age_of_process


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def work(minutes, pieces, save=3.0, spent=0.0):
    """(pieces done, seconds when all was saved), for pieces (kind, seconds)."""
    clock = Clock()
    deadline, done = Deadline(minutes, spent, clock=clock), 0
    for kind, seconds in pieces:
        if deadline.over(kind):
            break
        clock.now += seconds
        done += 1
    with deadline.saving():
        clock.now += save
    return done, clock.now - 1000 + spent


@pytest.mark.parametrize("minutes", [1, 2.5, 10])
@pytest.mark.parametrize("spent", [0.0, 20.0])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 7.0])
def test_ends_before_the_time_is_over_and_uses_most_of_it(minutes, spent, seconds):
    clock = Clock()
    deadline = Deadline(minutes, spent, clock=clock)
    with deadline.saving():  # a run's first save, by which the last one is known
        clock.now += 3
    while not deadline.over("step"):
        clock.now += seconds
    with deadline.saving():
        clock.now += 3
    ended = clock.now - 1000 + spent
    ending = ENDING + OF_THE_START * spent
    assert 60 * minutes - 2 * (seconds + 3) - 1 - ending <= ended <= 60 * minutes - ending


def test_each_kind_of_work_has_its_own_expectation():
    """After 300 short steps the next long piece is expected to be long again."""
    pieces = [("check", 10.0), *[("step", 0.1)] * 300, ("check", 10.0)]
    assert work(0.8, pieces, save=1.0)[0] == 301  # 40 s are over, 8 left
    assert work(1.2, pieces, save=1.0)[0] == 302


def test_a_slow_first_piece_is_forgotten():
    """As a recording of a CUDA graph, or the tuning of kernels."""
    done, ended = work(1, [("step", 19.0), *[("step", 0.1)] * 10_000], save=1.0)
    assert done > 300 and 55 < ended <= 60


@pytest.mark.parametrize("minutes", [1e-6, 0.01])
def test_the_smallest_time_gets_on_by_one_piece(minutes):
    assert work(minutes, [("step", 5.0)] * 9, spent=100.0)[0] == 1


def test_without_minutes_it_never_ends():
    assert work(None, [("step", 1e9)] * 9)[0] == 9


def test_of_several_processes_the_first_ones_clock_counts_and_all_stop():
    clock, answers = Clock(), []

    def agree(number):
        answers.append(number)
        return shared[0]

    shared = [0]
    first = Deadline(1, clock=clock, agree=agree)
    other = Deadline(1, clock=clock, agree=agree, is_first=False)
    for deadline in (first, other):
        assert not deadline.over("step")
    clock.now += 100
    assert not other.over("step") and answers[-1] == 0, "its own clock does not count"
    shared = [1]
    assert first.over("step") and answers[-1] == 1 and other.over("step")


def test_the_age_of_a_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(1)
        assert age_of_process(process.pid) == pytest.approx(1, abs=0.8)
        process.stdin.write(b"\n")
    assert age_of_process(-1) == 0
