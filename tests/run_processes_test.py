"""A whole run in two processes: what one process gives, stopped and resumed, written by one."""

import json
import signal
import time

import numpy as np
import pytest
import tiny_checkpoint
from whole_runs import QUICK, candidates, finish, make_pairs, real, start, start_two, weights

from larpo_jax import preemption, worlds

# Both devices hold halves of the weights; so large an eps that rounding decides no Adam step.
SPLIT = ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.optimizer.eps=1e-4"]
STEPS = ["--config.supervised.steps=6", "--config.rounds.steps_per_round=4"]
# Opened for writing under its workdir by a process that has no business there.
SPY = """
import os, runpy, sys
workdir = next(word for word in sys.argv if word.startswith("--workdir=")).partition("=")[2]
def spy(event, arguments):
  if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
    told = [os.path.abspath(arguments[0])]
  elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
    told = [os.path.abspath(path) for path in arguments[:2] if isinstance(path, str)]
  else:
    return
  for path in told:
    if path.startswith(workdir) and not path.startswith(os.path.join(workdir, "checkpoints")):
      print("WROTE", event, path)
if os.environ["JAX_PROCESS_ID"] == "1":
  sys.addaudithook(spy)
runpy.run_module("larpo_jax.main", run_name="__main__", alter_sys=True)
"""
# Process 0 dies when all batches of a round are on disk and the round is not.
DIES = """
import os, runpy
from larpo_jax import retrieval
if os.environ["JAX_PROCESS_ID"] == "0":
  retrieval._tell = lambda *arguments: os._exit(9)
runpy.run_module("larpo_jax.main", run_name="__main__", alter_sys=True)
"""
# Single steps, from the easy to the hard, where a teacher answers, too.
TAUGHT = """
from experiments.step_dpo import chains
def get_config(arg=""):
  config = chains.get_config(arg)
  config.rounds.teacher = dict(paths=("{teacher}",), candidates=2)
  config.rounds.curriculum = dict(name="curriculum.easy_to_hard", stages=2)
  config.rounds.update(difficulty="logp_gap", batch_size=2, steps_per_round=4)
  return config
"""


@pytest.fixture
def cache(tmp_path):
  (tmp_path / "cache").mkdir()
  return tmp_path / "cache"


def finish_both(both, timeout=300):
  try:
    return [finish(process, timeout) for process in both]
  finally:
    for process in both:
      process.kill()


def close(found, wanted):
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def numbers(workdir):
  """Each stage's and step's metrics, without timings."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  found = [
    ((row["stage"], row["step"], name), float(value))
    for row in rows
    for name, value in row.items()
    if name not in ("stage", "step") and not name.startswith("throughput/")
  ]
  assert len(dict(found)) == len(found), "each written once"
  return dict(found)


def same_run(two, one):
  close(weights(two), weights(one))
  assert candidates(two) == candidates(one)
  close(numbers(two), numbers(one))
  results = [json.loads((run / "results" / "summary.json").read_text()) for run in (two, one)]
  for side in ("before", "after"):
    close(results[0][side], results[1][side])
  # The same files, but for TensorBoard's, which are one a session.
  names = [{str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} for run in (two, one)]
  kept = [{n for n in each if not n.startswith(("tensorboard", "checkpoints"))} for each in names]
  assert kept[0] == kept[1]


@pytest.mark.timeout(600)
def test_rounds_in_two_processes_stopped_and_killed_are_those_of_one(tmp_path, cache):
  arguments = [*QUICK, *STEPS, *SPLIT]
  one = start(tmp_path / "one", *arguments, cache=cache, devices=2)
  both = start_two(tmp_path / "two", *arguments, cache=cache)
  while not list(tmp_path.glob("two/checkpoints/supervised/*/integrity.json")):
    assert [process.poll() for process in both] == [None, None], finish_both(both)
    time.sleep(0.05)
  both[1].send_signal(signal.SIGTERM)  # either of them stops both
  stopped = finish_both(both)
  assert [code for code, _ in stopped] == [preemption.REQUEUE] * 2, stopped
  killed = start_two(tmp_path / "two", *arguments, cache=cache, code=DIES)
  assert killed[0].wait(300) == 9, finish_both(killed)
  finish_both([each for each in killed if each.kill() is None])
  assert list(tmp_path.glob("two/rounds/0/partial/own-*.json"))
  (tmp_path / "two" / "error.txt").unlink(missing_ok=True)  # what the other one says of the death
  both = start_two(tmp_path / "two", *arguments, cache=cache, code=SPY)
  finished = finish_both(both)
  assert [code for code, _ in finished] == [0, 0], finished
  code, output = finish(one)
  assert code == 0, output
  same_run(tmp_path / "two", tmp_path / "one")
  assert "gold reward" in finished[0][1]
  assert "WROTE" not in finished[1][1]
  assert "gold reward" not in finished[1][1], "process 0 speaks for both"


@pytest.mark.timeout(600)
def test_what_is_novel_in_two_processes_is_novel_in_one(tmp_path, cache):
  page = "experiments/copo/counts.py:smoke"
  built_alike(tmp_path, cache, page, "--config.rounds.count=2")


@pytest.mark.timeout(600)
def test_steps_a_teacher_and_a_curriculum_in_two_processes_are_those_of_one(tmp_path, cache):
  teacher = tiny_checkpoint.make(tmp_path / "teacher", worlds.find("arithmetic").tokenizer())
  page = tmp_path / "taught.py"
  page.write_text(TAUGHT.format(teacher=teacher))
  built_alike(tmp_path, cache, f"{page}:smoke")


def built_alike(tmp_path, cache, page, *settings):
  """Runs a page in one process and in two, and compares all that they leave."""
  arguments = [f"--config={page}", "--config.supervised.shared=False", *SPLIT, *settings]
  one = start(tmp_path / "one", *arguments, cache=cache, devices=2)
  finished = finish_both(start_two(tmp_path / "two", *arguments, cache=cache))
  assert [code for code, _ in finished] == [0, 0], finished
  code, output = finish(one)
  assert code == 0, output
  same_run(tmp_path / "two", tmp_path / "one")
  paths = sorted(tmp_path.glob("one/rounds/*/lists.jsonl"))
  assert paths
  for path in paths:
    both = [tmp_path / "two" / path.relative_to(tmp_path / "one"), path]
    read = [list(map(json.loads, path.read_text().splitlines())) for path in both]
    for found, wanted in zip(*read, strict=True):
      importance = [line.pop("importance", []) for line in (found, wanted)]
      np.testing.assert_allclose(*importance, rtol=1e-3)
      assert found == wanted


@pytest.mark.timeout(600)
def test_pairs_with_adapters_and_a_cached_reference_in_two_processes(tmp_path, cache):
  checkpoint = tiny_checkpoint.make(tmp_path / "checkpoint")
  pairs = make_pairs(tmp_path / "pairs.jsonl", 20)  # the last batch is a short one
  adapters = ["--config.model.lora.rank=2", "--config.steps=4", "--config.evaluate.every=2"]
  arguments = [*real(checkpoint, pairs), *SPLIT, *adapters]
  # Caches of their own: neither may read what the other scored.
  caches = [tmp_path / name for name in ("first", "second")]
  for each in caches:
    each.mkdir()
  both = start_two(tmp_path / "two", *arguments, cache=caches[0], code=SPY)
  one = start(tmp_path / "one", *arguments, cache=caches[1], devices=2)
  finished = finish_both(both)
  assert [code for code, _ in finished] == [0, 0], finished
  code, output = finish(one)
  assert code == 0, output
  same_run(tmp_path / "two", tmp_path / "one")
  assert "WROTE" not in finished[1][1]
  assert list(caches[0].glob("reference/*/*.ref"))


@pytest.mark.timeout(300)
def test_one_that_fails_takes_the_other_along(tmp_path, cache):
  # No answer of so young a model is right: process 0, which writes the lists, is the one to see it.
  arguments = [*QUICK, *STEPS, *SPLIT, "--config.reward.name=worlds.arithmetic"]
  began = time.monotonic()
  finished = finish_both(start_two(tmp_path / "run", *arguments, cache=cache))
  assert finished[0][0] == 1
  assert "every list has equal rewards" in finished[0][1]
  assert finished[1][0] != 0
  assert time.monotonic() - began < 120, "not after the minutes that an orderly exit waits"
