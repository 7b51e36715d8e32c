"""Points that share a process: which do, and that each ends as it does alone."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sweep_launch_test import Scripted, finish, states
from sweep_points_test import base
from whole_runs import candidates, weights

from larpo_jax import preemption
from larpo_jax.sweep import groups, launch, points

ROOT = pathlib.Path(__file__).parent.parent
PAGE = """
from experiments import quickstart


def get_config(arg=''):
  config = quickstart.get_config('smoke')
  config.supervised.update(steps=6, shared=True)
  config.rounds.update(count=2, steps_per_round=4)
  config.checkpoint.every = 2
  return config


def sweep():
  yield {'loss.beta': 0.1}
  yield {'loss.beta': 0.5}
"""


def named(changes, seeds=1, most=0, **more):
  found = points.points(base(**more), changes, seeds)
  return [[point.name for point in group] for group in groups.groups(found, most)]


def test_points_that_differ_in_numbers_share_a_process():
  changes = [{"loss": dict(name="listwise.listmle", beta=beta)} for beta in (0.1, 0.2)]
  changes += [{"loss": dict(name="pairwise.dpo", beta=0.1)}]
  assert [len(group) for group in named(changes, seeds=2)] == [4, 2]
  assert [len(group) for group in named(changes, seeds=2, most=3)] == [3, 1, 2]
  assert [len(group) for group in named(changes, seeds=2, most=1)] == [1] * 6


def test_points_that_differ_in_more_or_are_large_do_not():
  rates = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e-4)]
  assert [len(group) for group in named(rates)] == [2]
  for change in ({"data.batch_size": 16}, {"rounds.temperature": 0.7}, {"optimizer.b1": 0.5}):
    assert [len(group) for group in named([{}, change])] == [1, 1], change
  large = dict(model_type="llama", hidden_size=4096)
  assert [len(group) for group in named([{"model.shape": large, **rate} for rate in rates])] == [
    1,
    1,
  ]
  for change in ({"mesh.fsdp": 2}, {"data.test": dict(path="pairs.jsonl", split="", reader=None)}):
    assert [len(group) for group in named([{**change, **rate} for rate in rates])] == [1, 1]


def test_adapters_share_a_process_where_that_is_asked_for():
  rates = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e-4)]
  loaded = {"model.path": "somewhere", "model.shape": {}}
  adapted = [{**loaded, "model.lora.rank": 8, **rate} for rate in rates]
  assert [len(group) for group in named(adapted)] == [1, 1]
  assert [len(group) for group in named(adapted, most=4)] == [2]
  whole = [{**loaded, **rate} for rate in rates]
  assert [len(group) for group in named(whole, most=4)] == [1, 1]


def test_every_point_is_in_one_group():
  changes = [
    {"optimizer.learning_rate": rate, "data.batch_size": size}
    for rate in (1e-3, 1e-4)
    for size in (4, 8)
  ]
  found = named(changes, seeds=3, most=4)
  every = [name for group in found for name in group]
  assert sorted(every) == sorted(p.name for p in points.points(base(), changes, 3))


def test_a_group_is_one_job_and_what_is_missing_of_it_is_the_next(tmp_path):
  found = points.points(base(), [{"optimizer.learning_rate": r} for r in (1e-3, 1e-4, 1e-5)], 1)
  names = [point.name for point in found]
  commands = []

  class Half(Scripted):
    """A job that ends the first of what is missing, and says that a signal stopped it."""

    def submit(self, command, config, log):
      commands.append(command[4:] if "larpo_jax.sweep.together" in command else command)
      self.running[len(commands)] = 0
      return len(commands)

    def poll(self, job):
      missing = [name for name in names if not launch.done(tmp_path, found[names.index(name)])]
      if job in self.running:
        del self.running[job]
        finish(tmp_path / missing[0])
      return preemption.REQUEUE if len(missing) > 1 else 0

  statuses = launch.launch([found], tmp_path, Half(slots=1), pause=0.0)
  assert states(statuses) == ["done"] * 3
  assert commands[:2] == [names, names[1:]]
  assert "larpo_jax.main" in commands[2]
  assert f"--workdir={tmp_path / names[2]}" in commands[2]


def test_time_in_a_job_is_shared_by_those_in_it():
  found = points.points(base(), [{"optimizer.learning_rate": r} for r in (1e-3, 1e-4, 1e-5)], 1)
  mates = [launch.Status(point, began=time.monotonic() - 60) for point in found]
  mates[1].began = mates[0].began
  for each in mates:
    each.mates = mates
  assert mates[0].elapsed() == pytest.approx(30, abs=1)
  assert mates[2].elapsed() == pytest.approx(60, abs=1)
  assert launch.Status(found[0], began=mates[0].began).elapsed() == pytest.approx(60, abs=1)


def test_points_that_failed_together_are_tried_again_alone(tmp_path):
  found = points.points(base(), [{"optimizer.learning_rate": r} for r in (1e-3, 1e-4, 1e-5)], 1)
  commands = []

  class Full(Scripted):
    """A machine whose memory takes one run, not three."""

    def submit(self, command, config, log):
      commands.append([word for word in command if word in [point.name for point in found]])
      alone = next((word for word in command if word.startswith("--workdir=")), "")
      if "larpo_jax.main" in command:
        finish(pathlib.Path(alone.removeprefix("--workdir=")))
      self.running[len(commands)] = 0 if "larpo_jax.main" in command else 1
      return len(commands)

    def poll(self, job):
      return self.running[job]

    def free(self, config):
      return True

  statuses = launch.launch([found], tmp_path, Full(), retries=1, pause=0.0)
  assert states(statuses) == ["done"] * 3
  assert commands == [[point.name for point in found], [], [], []]


def test_runs_side_by_side_are_stopped_go_on_and_end_as_each_does_alone(tmp_path):
  page = tmp_path / "page.py"
  page.write_text(PAGE)
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "LARPO_CACHE": str(tmp_path / "cache")}
  flags = environment["XLA_FLAGS"].replace("device_count=8", "device_count=1")
  how = dict(env=environment | {"XLA_FLAGS": flags}, cwd=ROOT, text=True)

  def sweep(name, *more):
    command = [sys.executable, "-m", "larpo_jax.sweep", f"--config={page}", "--seeds=2"]
    command += [f"--workdir={tmp_path / name}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)

  first = sweep("together")
  saved = lambda: list(tmp_path.glob("together/*/checkpoints/round_0/*/integrity.json"))  # noqa: E731
  deadline = time.monotonic() + 200
  while not saved() and first.poll() is None and time.monotonic() < deadline:
    time.sleep(0.1)
  first.send_signal(signal.SIGTERM)
  said, _ = first.communicate(timeout=200)
  assert first.returncode == preemption.REQUEUE, said
  assert "4 runs in 1 processes" in said
  assert not list(tmp_path.glob("together/*/results/summary.json"))

  for name, more in (("together", []), ("alone", ["--together=1", "--jobs=2"])):
    process = sweep(name, *more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
  names = [row["name"] for row in json.loads((tmp_path / "alone" / "sweep.json").read_text())]
  assert len(names) == 4
  for name in names:
    together, alone = tmp_path / "together" / name, tmp_path / "alone" / name
    assert candidates(together) == candidates(alone)
    for key, wanted in weights(alone).items():
      np.testing.assert_allclose(weights(together)[key], wanted, rtol=0, atol=1e-5)
    assert (together / "log.txt").stat().st_size
    summaries = [
      json.loads((x / "results" / "summary.json").read_text()) for x in (together, alone)
    ]
    for side in ("before", "after"):
      for metric, wanted in summaries[1][side].items():
        assert abs(summaries[0][side][metric] - wanted) < 1e-4, metric
  digests = {str(sorted(weights(tmp_path / "together" / name).items())) for name in names}
  assert len(digests) == 4, "no two points are one"
