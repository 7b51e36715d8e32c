"""Launching, relaunching, failing and stopping; and one sweep of real runs, killed and resumed."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from sweep_points_test import base

from larpo_jax import preemption, workdir
from larpo_jax.runs import read
from larpo_jax.sweep import launch, local, points, ray, slurm, view

ROOT = pathlib.Path(__file__).parent.parent
CHANGES = [{"steps": steps} for steps in (1, 2, 3)]


class Scripted:
  """A launcher whose jobs end at once with the exit codes that are given, by directory."""

  def __init__(self, codes=None, slots=2, after=0):
    self.codes = {name: list(each) for name, each in (codes or {}).items()}
    self.slots, self.after, self.submitted, self.cancelled = slots, after, [], []
    self.running = {}

  def free(self, config):
    return len(self.running) < self.slots

  def submit(self, command, config, log):
    workdir = log.parent
    self.submitted.append(workdir.name)
    assert f"--workdir={workdir}" in command
    self.running[workdir] = self.after
    return workdir

  def poll(self, job):
    if self.running[job] > 0:
      self.running[job] -= 1
      return None
    del self.running[job]
    code = self.codes.get(job.name, [0]).pop(0) if self.codes.get(job.name) else 0
    if code == 0:
      finish(job)
    else:
      (job / read.LOG).write_text("one\ntwo\nthe reason\n")
    return code

  def cancel(self, job):
    self.cancelled.append(job.name)
    self.running[job], self.codes[job.name] = 0, [preemption.REQUEUE]


def finish(workdir, reward=1.0):
  (workdir / "results").mkdir(parents=True, exist_ok=True)
  summary = {"before": {"gold/reward": 0.0}, "after": {"gold/reward": reward}}
  (workdir / "results" / "summary.json").write_text(json.dumps(summary))


def started(tmp_path, launcher, **options):
  found = points.points(base(), CHANGES, 1)
  return launch.launch([[point] for point in found], tmp_path, launcher, pause=0.0, **options)


def states(statuses):
  return [status.state for status in statuses]


def test_all_points_run_once_and_never_again(tmp_path):
  launcher = Scripted()
  assert states(started(tmp_path, launcher)) == ["done"] * 3
  assert launcher.submitted == [f"steps={n},seed=0" for n in (1, 2, 3)]
  again = Scripted()
  assert states(started(tmp_path, again)) == ["done"] * 3
  assert again.submitted == []


def test_only_so_many_run_at_a_time(tmp_path):
  launcher, most = Scripted(slots=2, after=3), []
  started(tmp_path, launcher, show=lambda _: most.append(len(launcher.running)))
  assert max(most) == 2


def test_a_failed_point_is_tried_again_and_then_told_of(tmp_path):
  launcher = Scripted({"steps=1,seed=0": [1], "steps=2,seed=0": [1, 1, 1]})
  statuses = started(tmp_path, launcher, retries=1)
  assert states(statuses) == ["done", "failed", "done"]
  assert launcher.submitted.count("steps=2,seed=0") == 2
  console = Console(record=True, width=200)
  view.last_words(tmp_path, statuses, console)
  said = console.export_text()
  assert "steps=2,seed=0" in said
  assert "the reason" in said
  assert "steps=1" not in said


def test_a_preempted_point_goes_on_and_that_is_no_failure(tmp_path):
  launcher = Scripted({"steps=1,seed=0": [preemption.REQUEUE] * 5})
  assert states(started(tmp_path, launcher, retries=0)) == ["done"] * 3
  assert launcher.submitted.count("steps=1,seed=0") == 6


def test_a_point_of_another_launcher_is_waited_for(tmp_path, monkeypatch):
  monkeypatch.setattr(launch, "AGAIN", 0.05)
  launcher = Scripted({"steps=1,seed=0": [preemption.IN_USE] * 2})
  seen = []

  def show(statuses):
    seen.append(statuses[0].state)
    if seen.count("elsewhere") == 4:
      finish(tmp_path / "steps=1,seed=0")

  statuses = started(tmp_path, launcher, retries=0, show=show)
  assert states(statuses) == ["done"] * 3
  assert "elsewhere" in seen


def test_a_point_whose_lock_is_held_is_not_even_started(tmp_path, monkeypatch):
  monkeypatch.setattr(launch, "AGAIN", 0.05)
  launcher, seen = Scripted(), []
  held = tmp_path / "steps=1,seed=0"
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdir.claim(held))

    def show(statuses):
      seen.append(statuses[0].state)
      if len(seen) == 5:
        assert "steps=1,seed=0" not in launcher.submitted
        stack.close()

    assert states(started(tmp_path, launcher, retries=0, show=show)) == ["done"] * 3
  assert seen[:5] == ["elsewhere"] * 5
  assert launcher.submitted.count("steps=1,seed=0") == 1


def test_a_stop_reaches_the_jobs_and_leaves_the_rest(tmp_path):
  class Guard:
    polls = 0

    def poll(self, step):
      self.polls += 1
      return self.polls > 2

  launcher = Scripted(slots=1, after=100)
  statuses = started(tmp_path, launcher, guard=Guard())
  assert states(statuses) == ["waiting"] * 3
  assert launcher.cancelled == ["steps=1,seed=0"]


def test_the_view_says_how_many_how_long_and_the_best(tmp_path):
  console = Console(record=True, width=200, force_terminal=False)
  shown = view.View(tmp_path, 2, "", console)
  statuses = started(tmp_path, Scripted(after=2), show=shown.show)
  for number, status in enumerate(statuses):
    finish(tmp_path / status.point.name, reward=number / 2)
    status.seconds = 60.0
  statuses[0].state = "waiting"
  shown.show(statuses)
  last = console.export_text().strip().splitlines()[-1]
  assert "2 done, 1 waiting" in last
  assert "about 1.0 min left" in last
  assert "best gold/reward 1: steps=3,seed=0" in last


def test_gpus_are_dealt_out_by_mesh():
  launcher = local.Local(environment={"CUDA_VISIBLE_DEVICES": "3,5,7,9"})
  assert launcher.slots == 4
  one, two = {"mesh": dict(data=-1, fsdp=1, tensor=1)}, {"mesh": dict(data=1, fsdp=2, tensor=1)}
  sleep = [sys.executable, "-c", "import time; time.sleep(30)"]
  log = pathlib.Path(os.devnull)
  jobs = [launcher.submit(sleep, config, log) for config in (one, two, one)]
  try:
    assert [job.devices for job in jobs] == [("3",), ("5", "7"), ("9",)]
    assert all(os.getpgid(job.process.pid) != os.getpgid(0) for job in jobs)
    assert not launcher.free(one)
    jobs[0].process.kill()
    jobs[0].process.wait()
    assert launcher.free(one)
    assert not launcher.free(two), "one idle device is not two"
    with pytest.raises(ValueError, match="8 devices"):
      launcher.submit(sleep, {"mesh": dict(data=8)}, log)
  finally:
    for job in jobs:
      job.process.kill()
      job.process.wait()
  assert launcher.free(two)
  assert local.gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
  assert local.by_cores_and_memory() >= 1


@pytest.mark.parametrize(
  ("module", "extra", "make"),
  [
    ("submitit", "launch", lambda path: slurm.Slurm(path, {"time": "10"})),
    ("ray", "ray", lambda path: ray.Ray({})),
  ],
)
def test_an_engine_that_is_missing_names_its_extra(tmp_path, monkeypatch, module, extra, make):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ValueError, match=re.escape(f"pip install 'larpo_jax[{extra}]'")):
    make(tmp_path)


def test_a_real_sweep_is_stopped_and_goes_on(tmp_path):
  page = tmp_path / "page.py"
  page.write_text(
    "from experiments import quickstart\n\n\ndef get_config(arg=''):\n"
    "  return quickstart.get_config(arg)\n\n\ndef sweep():\n"
    "  yield {'loss.beta': 0.1}\n  yield {'loss.beta': 0.5}\n"
  )
  command = [sys.executable, "-m", "larpo_jax.sweep", f"--config={page}:smoke"]
  command += [f"--workdir={tmp_path}/sweep", "--jobs=1", "--together=1"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "LARPO_CACHE": str(tmp_path / "cache")}
  run = lambda *more: subprocess.run(  # noqa: E731
    [*command, *more], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
  )
  dry = run("--dry_run")
  assert dry.returncode == 0, dry.stderr
  assert "beta=0.1,seed=0" in dry.stdout
  assert not (tmp_path / "sweep").exists()

  first = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  metrics = tmp_path / "sweep" / "beta=0.1,seed=0" / "metrics.jsonl"
  deadline = time.monotonic() + 120
  while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
    time.sleep(0.1)
  first.send_signal(signal.SIGTERM)
  said, _ = first.communicate(timeout=120)
  assert first.returncode == preemption.REQUEUE, said
  assert not (tmp_path / "sweep" / "beta=0.5,seed=0" / "results").exists()

  one = run("--only=0")
  assert one.returncode == 0, one.stdout + one.stderr
  assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())) == 2, "all are known"
  second = run()
  assert second.returncode == 0, second.stdout + second.stderr
  assert "all 2 runs are done" in second.stdout
  assert re.search(r"best gold/reward [\d.]+: beta=0\.\d,seed=0", second.stdout)
  for beta in (0.1, 0.5):
    workdir = tmp_path / "sweep" / f"beta={beta},seed=0"
    assert json.loads((workdir / "config.json").read_text())["loss"]["beta"] == beta
    for name in ("versions.json", "metrics.jsonl", "results/summary.json", "log.txt"):
      assert (workdir / name).exists(), name
  third = run()
  assert third.returncode == 0
  assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())) == 2
