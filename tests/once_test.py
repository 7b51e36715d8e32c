"""One reference pass for runs that start together: two real processes, one of them killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from reference_test import Scorer, assert_right, batches, opened

from larpo_jax.data import once, reference

BATCHES = 6
# Fills the cache of argv[1] with the data of seed argv[2], slowly, and says how often it scored.
FILLER = f"""
import sys, time
import reference_test as tests
scorer = tests.Scorer()
def score(batch):
  print("scoring", flush=True)
  time.sleep(0.5)
  return scorer(batch)
some = tests.batches(int(sys.argv[2]), count={BATCHES})
cache = tests.opened(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
tests.reference.fill(some, score, cache)
tests.assert_right(cache, some)
print("calls", scorer.calls)
"""


def filler(directory, seed):
  """A process that has everything ready and fills when it is told to go."""
  here = pathlib.Path(__file__).parent
  path = os.pathsep.join([str(here), str(here.parent)])
  process = subprocess.Popen(
    [sys.executable, "-c", FILLER, str(directory), str(seed)],
    env={**os.environ, "PYTHONPATH": path},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  return process


def go(process):
  process.stdin.write("go\n")
  process.stdin.flush()


def calls(process):
  said, _ = process.communicate(timeout=60)
  assert process.returncode == 0, said
  return int(said.split("calls ")[1])


@pytest.fixture
def two(tmp_path, seed):
  both = [filler(tmp_path, seed) for _ in range(2)]
  assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
  yield both
  for process in both:
    process.kill()
    process.communicate()


def test_two_that_start_together_score_once(two):
  for process in two:
    go(process)
  assert sorted(calls(process) for process in two) == [0, BATCHES]


def test_what_is_scored_just_before_the_lock_is_free_is_not_scored_again(
  seed, tmp_path, monkeypatch
):
  some, inner, acquire = batches(seed), Scorer(), once.filelock.FileLock.acquire

  def late(self, *arguments, **named):
    """Another one ends after the last look at the cache."""
    monkeypatch.setattr(once.filelock.FileLock, "acquire", acquire)
    reference.fill(some, Scorer(), opened(tmp_path))
    return acquire(self, *arguments, **named)

  monkeypatch.setattr(once.filelock.FileLock, "acquire", late)
  cache = opened(tmp_path)
  assert reference.fill(some, inner, cache) == 0
  assert inner.calls == 0
  assert_right(cache, some)


def test_who_waits_goes_on_when_the_other_is_killed(two):
  first, second = two
  go(first)
  assert first.stdout.readline() == "scoring\n"
  go(second)
  assert second.stdout.readline().startswith("waiting for another run")
  first.send_signal(signal.SIGKILL)
  assert calls(second) == BATCHES


def test_other_data_does_not_wait(seed, tmp_path):
  inner = Scorer()

  def score(batch):
    others = batches(seed + 100)
    reference.fill(others, inner, opened(tmp_path))
    assert_right(opened(tmp_path), others)
    return Scorer()(batch)

  reference.fill(batches(seed), score, opened(tmp_path))
  assert inner.calls == 3


def test_who_waits_can_be_stopped_and_gives_up_on_one_that_hangs(seed, tmp_path, monkeypatch):
  monkeypatch.setattr(once, "PAUSE", 0.01)
  some, inner, asked = batches(seed), Scorer(), []

  def stop(seconds):
    time.sleep(seconds)
    asked.append(time.monotonic())
    if len(asked) == 3:
      raise InterruptedError("asked to stop")

  def score(batch):
    if not asked:
      with pytest.raises(InterruptedError):
        reference.fill(some, inner, opened(tmp_path), wait=stop)
      assert inner.calls == 0
      monkeypatch.setattr(once, "PATIENCE", 0.05)
      with pytest.warns(UserWarning, match="no news"):
        reference.fill(some, inner, opened(tmp_path))
      assert inner.calls == 3
    return Scorer()(batch)

  reference.fill(some, score, opened(tmp_path))
  assert_right(opened(tmp_path), some)
