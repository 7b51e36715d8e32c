"""Whole runs as a user starts them: killed, stopped, finished, and refused in one sentence."""

import json
import random
import re
import signal
import time

import datasets
import pytest
import tiny_checkpoint
from whole_runs import QUICK, digest, finish, make_pairs, real, start

from larpo_jax import preemption, writers


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
  """An uninterrupted run: its workdir, what it printed, how long it took."""
  workdir = tmp_path_factory.mktemp("whole")
  finish(start(tmp_path_factory.mktemp("warm"), *QUICK, cache=cache))  # compiles
  began = time.monotonic()
  code, output = finish(start(workdir, *QUICK, cache=cache))
  assert code == 0, output
  return workdir, output, time.monotonic() - began


def test_a_run_says_and_writes_what_it_did(whole):
  workdir, output, _ = whole
  for word in ("gold reward", "before", "after", "KL to the start"):
    assert word in output
  assert (workdir / "results" / "summary.json").exists()
  assert list(workdir.rglob("events.out.tfevents.*"))
  assert list(workdir.rglob("*.png"))
  assert json.loads((workdir / "config.json").read_text())["loss"]["name"] == "listwise.listmle"
  summary = json.loads((workdir / "results" / "summary.json").read_text())
  for name in ("before", "after", "round_1"):
    numbers = json.loads((workdir / "results" / f"{name}.json").read_text())
    text = (workdir / "results" / f"{name}.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for metric in ("gold/reward", "sampled/gold/accuracy", "kl", "length"):
      assert numbers[metric] == pytest.approx(sum(x[metric] for x in lines) / len(lines))
  assert summary["cost"]["steps"] == 12 + 2 * 6
  assert summary["cost"]["generated_tokens"] >= 2 * 8 * 4
  assert 0 < summary["cost"]["seconds"] < 300
  # The policy of a round's start is the round's reference.
  rows = {(row["stage"], row["step"]): row for row in writers.read(workdir)}
  for number in (0, 1):
    margins = [rows[f"round_{number}", step]["rewards/margins"] for step in (1, 6)]
    assert margins[0] == pytest.approx(0, abs=1e-6) != margins[1]


def test_samples_are_compared_with_those_of_the_start(whole):
  """Win rates by the gold reward of each prompt's own two samples."""
  workdir, _, _ = whole
  read = lambda name: (workdir / "results" / f"{name}.jsonl").read_text().splitlines()  # noqa: E731
  rewards = [
    [json.loads(line)["sampled/gold/reward"] for line in read(name)] for name in ("before", "after")
  ]
  wins = [(then < now) + 0.5 * (then == now) for then, now in zip(*rewards, strict=True)]
  summary = json.loads((workdir / "results" / "summary.json").read_text())
  assert summary["after"]["sampled/win_rate"] == pytest.approx(sum(wins) / len(wins))
  assert 0 <= summary["after"]["sampled/win_rate_lc"] <= 1
  assert summary["before"]["sampled/win_rate"] == summary["before"]["sampled/win_rate_lc"] == 0.5


def test_lists_of_a_run_are_all_that_another_needs(whole, tmp_path, cache):
  """A reward model learns from what a round was trained on, and is tested on what one sampled."""
  rounds = whole[0] / "rounds"
  lists, candidates = rounds / "0" / "lists.jsonl", rounds / "1" / "candidates.jsonl"
  for path, columns in ((lists, set()), (candidates, {"sources", "finished", "lengths"})):
    loaded = datasets.load_dataset("json", data_files=str(path), cache_dir=str(tmp_path / "hf"))
    assert set(loaded["train"].column_names) == {"prompt", "responses", "scores"} | columns
  page = "--config=experiments/rewards/arithmetic_proxy.py:smoke"
  paths = [f"--config.data.train.path={lists}", f"--config.data.test.path={candidates}"]
  code, output = finish(start(tmp_path / "proxy", page, *paths, cache=cache))
  assert code == 0, output
  after = json.loads((tmp_path / "proxy" / "results" / "after.json").read_text())
  assert 0 <= after["score/accuracy"] <= 1
  assert (tmp_path / "proxy" / "export" / "reading.json").exists()


def test_the_same_command_again_says_that_it_is_finished(whole, cache):
  workdir, _, _ = whole
  before = digest(workdir)
  code, output = finish(start(workdir, *QUICK, cache=cache))
  assert code == 0
  assert "is finished" in output
  assert "gold reward" in output
  assert digest(workdir) == before


@pytest.mark.timeout(900)
def test_killed_at_five_random_moments_it_ends_with_the_same_bits(whole, tmp_path, cache, seed):
  reference, _, seconds = whole
  moments = random.Random(seed)
  for _ in range(5):
    process = start(tmp_path, *QUICK, cache=cache)
    time.sleep(moments.uniform(0.15, 0.95) * seconds)
    process.kill()
    process.communicate()
  code, output = finish(start(tmp_path, *QUICK, cache=cache))
  assert code == 0, output
  assert digest(tmp_path) == digest(reference)


def test_sigterm_saves_and_asks_to_be_started_again(whole, tmp_path, cache):
  reference, _, _ = whole
  process = start(tmp_path, *QUICK, cache=cache)
  while not list(tmp_path.glob("checkpoints/supervised/*/integrity.json")):
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  code, output = finish(process)
  assert code == preemption.REQUEUE, output
  assert "the same command resumes" in output
  code, output = finish(start(tmp_path, *QUICK, cache=cache))
  assert code == 0, output
  assert digest(tmp_path) == digest(reference)


# Sends itself a signal when it samples for the n-th time.
SIGNALLED = """
import os, runpy
from larpo_jax import sampling
sample, left = sampling.sample, int(os.environ["NTH"])
def sampling_until(*arguments, **how):
  global left
  left -= 1
  if left == 0:
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
  return sample(*arguments, **how)
sampling.sample = sampling_until
runpy.run_module("larpo_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.timeout(600)
def test_killed_and_stopped_in_the_middle_of_sampling(whole, tmp_path, cache):
  reference, _, _ = whole
  quick = [*QUICK, "--config.rounds.batch_size=2"]  # 4 batches of prompts a round

  def run(nth, number):
    environment = dict(NTH=str(nth), SIGNAL=str(int(number)))
    return finish(start(tmp_path, *quick, cache=cache, code=SIGNALLED, **environment))

  code, output = run(2 + 3, signal.SIGKILL)  # an evaluation samples twice; then round 0
  assert code == -signal.SIGKILL, output
  assert (tmp_path / "results" / "before.json").exists()
  kept = lambda n: sorted(path.name for path in (tmp_path / f"rounds/{n}/partial").glob("*"))  # noqa: E731
  assert kept(0) == ["own-1.json", "own-2.json"]
  assert not (tmp_path / "rounds" / "0" / "candidates.jsonl").exists()
  code, output = run(2 + 2, signal.SIGTERM)  # the other half of round 0, and half of round 1
  assert code == preemption.REQUEUE, output
  assert "stopped between training steps" in output
  assert (tmp_path / "rounds" / "0" / "candidates.jsonl").exists()
  assert (kept(0), kept(1)) == ([], ["own-1.json", "own-2.json"])
  assert not (tmp_path / "rounds" / "1" / "candidates.jsonl").exists()
  code, output = finish(start(tmp_path, *quick, cache=cache))
  assert code == 0, output
  assert digest(tmp_path) == digest(reference)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return tiny_checkpoint.make(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 16)


def test_any_checkpoint_and_any_data_from_the_command_line(checkpoint, pairs, tmp_path, cache):
  short = "--config.data.max_response=4"
  code, output = finish(start(tmp_path, *real(checkpoint, pairs), short, cache=cache))
  assert code == 0, output
  assert "preference accuracy" in output
  # 16 rows of "yes 0" and "no 0", a token each letter and one that ends it.
  cut, _, rest = output.partition("align: ")
  assert f"truncationof{pairs}" in "".join(cut.split())  # the title is as wide as the table
  assert re.search(r"responses +│ 32 +│ 32 +│ 100.0%", cut), cut
  assert re.search(r"response tokens +│ 188 +│ 60 +│ 31.9%", cut), cut
  assert "truncation" not in rest


def wrong(name, tmp_path, checkpoint, pairs):
  """Arguments with one mistake, and what the message has to name."""
  quick = QUICK[:1]
  if name == "truncated weights":
    bad = tiny_checkpoint.make(tmp_path / "cut")
    whole = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return real(bad, pairs), ["model.safetensors", "damaged"]
  if name == "missing weights":
    bad = tiny_checkpoint.make(tmp_path / "none")
    (bad / "model.safetensors").unlink()
    return real(bad, pairs), ["model.safetensors"]
  if name == "pickled weights":
    bad = tiny_checkpoint.make(tmp_path / "pickle")
    (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
    return real(bad, pairs), ["pytorch_model.bin", "safetensors"]
  if name == "unknown architecture":
    bad = tiny_checkpoint.make(tmp_path / "arch")
    text = (bad / "config.json").read_text()
    (bad / "config.json").write_text(text.replace('"llama"', '"mamba"'))
    return real(bad, pairs), ["mamba", "llama"]
  if name == "empty data":
    (tmp_path / "empty.jsonl").write_text("")
    return real(checkpoint, tmp_path / "empty.jsonl"), ["empty.jsonl", "0 rows"]
  if name == "missing data":
    return real(checkpoint, tmp_path / "absent.jsonl"), ["absent.jsonl"]
  if name == "bad row":
    (tmp_path / "bad.jsonl").write_text(pairs.read_text() + '{"prompt": "x", "chosen": "y"}\n')
    return real(checkpoint, tmp_path / "bad.jsonl"), ["bad.jsonl:17", "rejected"]
  if name == "hub id without network":
    return real("some/model", pairs), ["some/model"]
  return {
    "typo": (["--config=experiments/quickstart.py:smoke", "--config.optimizer.b3=1"], ["b3"]),
    "mesh": ([*quick, "--config.mesh.tensor=3"], ["tensor=3", "device"]),
    "one candidate": ([*quick, "--config.rounds.candidates=1"], ["candidates"]),
    "no loss": ([*quick, "--config.loss.name=listwise.listmel"], ["listmel", "listwise.listmle"]),
    "stray word": ([*quick, "extra"], ["extra"]),
    "nan": ([*quick, "--config.optimizer.learning_rate=nan"], ["learning_rate", "nan"]),
  }[name]


@pytest.mark.parametrize(
  "name",
  [
    "truncated weights", "missing weights", "pickled weights", "unknown architecture",
    "empty data", "missing data", "bad row", "hub id without network", "typo", "mesh",
    "one candidate", "no loss", "stray word", "nan",
  ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence(name, tmp_path, checkpoint, pairs, cache):
  arguments, words = wrong(name, tmp_path, checkpoint, pairs)
  code, output = finish(start(tmp_path / "run", *arguments, cache=cache))
  assert code not in (0, preemption.REQUEUE)
  assert all(word in output for word in words), output
  assert "Traceback" not in output, output


def test_a_workdir_in_use_is_refused(tmp_path, cache):
  first = start(tmp_path, *QUICK, cache=cache)
  while not (tmp_path / ".lock").exists():
    assert first.poll() is None, first.communicate()
    time.sleep(0.05)
  time.sleep(0.2)
  code, output = finish(start(tmp_path, *QUICK, cache=cache))
  first.kill()
  first.communicate()
  assert code == preemption.IN_USE
  assert str(first.pid) in output
