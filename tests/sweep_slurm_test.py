"""Slurm for real, on one node: exit codes, stopping, finding jobs again, a sweep of real runs."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from jobs import SAVES, ended, python, says
import pytest
import slurm_node

from larpo_jax import preemption
from larpo_jax.sweep import slurm
from larpo_jax.sweep.slurm import Slurm

pytestmark = pytest.mark.slurm
ROOT = pathlib.Path(__file__).parent.parent
SHORT = {"time": "10", "cpus-per-task": "2"}  # two at a time
POINTS = 4


@pytest.fixture(scope="module")
def node(tmp_path_factory):
  """The environment that speaks to it; where that is not there, it fails: ask for it by name."""
  directory = tmp_path_factory.mktemp("slurm", numbered=False)
  with slurm_node.slurm(directory) as environment:
    yield environment


@pytest.fixture
def quick(node, monkeypatch):
  """This process speaks to it too, and looks often."""
  monkeypatch.setenv("SLURM_CONF", node["SLURM_CONF"])
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setattr(slurm, "EVERY", 0.2)
  monkeypatch.setattr(slurm, "LOST", 1.0)


def log_of(tmp_path, name):
  (tmp_path / name).mkdir(exist_ok=True)
  return tmp_path / name / "log.txt"


def queue(environment, field="%i"):
  command = ["squeue", "--noheader", f"--format={field}"]
  return subprocess.run(
    command, env=environment, capture_output=True, text=True, check=True
  ).stdout.split()


def test_exit_codes_and_output_come_back(quick, tmp_path):
  launcher = Slurm(tmp_path, SHORT, jobs=2)
  logs = [log_of(tmp_path, name) for name in ("a", "b")]
  codes = ("print('fine')", "print('bad'); raise SystemExit(3)")
  jobs = []
  for code, log in zip(codes, logs):
    assert launcher.free(None)
    jobs.append(launcher.submit(python(code), None, log))
  assert not launcher.free(None)
  assert [ended(launcher, job) for job in jobs] == [0, 3]
  assert [log.read_text() for log in logs] == ["fine\n", "bad\n"]
  assert launcher.free(None)


def test_a_stop_reaches_those_that_run_and_those_that_wait(quick, node, tmp_path):
  launcher = Slurm(tmp_path, SHORT)
  logs = [log_of(tmp_path, name) for name in ("a", "b", "c")]
  jobs = [launcher.submit(python(SAVES), None, log) for log in logs]
  for log in logs[:2]:
    says(log, "ready")
  for _ in range(2):
    for job in jobs:
      launcher.cancel(job)
  assert [ended(launcher, job) for job in jobs] == [preemption.REQUEUE] * 3
  assert not logs[2].exists(), "the third had no room"
  assert queue(node) == [], "none of them is back in the queue"


def test_a_preempted_job_goes_on_by_itself(quick, node, tmp_path):
  launcher = Slurm(tmp_path, SHORT)
  logs = [log_of(tmp_path, name) for name in ("term", "requeue")]
  jobs = [launcher.submit(python(SAVES), None, log) for log in logs]
  for log in logs:
    says(log, "ready")
  subprocess.run(["scancel", "--signal=TERM", jobs[0].number], check=True)
  subprocess.run(["scontrol", "requeue", jobs[1].number], check=True)
  for job, log in zip(jobs, logs):
    says(log, "ready\nready")
    assert launcher.poll(job) is None
    launcher.cancel(job)
  assert [ended(launcher, job) for job in jobs] == [preemption.REQUEUE] * 2
  assert queue(node) == []


def test_a_killed_job_has_failed_and_one_that_a_user_cancels_does_not_come_back(
  quick, node, tmp_path
):
  launcher = Slurm(tmp_path, SHORT)
  logs = [log_of(tmp_path, name) for name in ("killed", "cancelled")]
  kills = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
  jobs = [launcher.submit(python(each), None, log) for each, log in zip((kills, SAVES), logs)]
  says(logs[1], "ready")
  subprocess.run(["scancel", jobs[1].number], check=True)
  assert [ended(launcher, job) for job in jobs] == [1, preemption.REQUEUE]
  assert queue(node) == []


def test_another_launcher_finds_what_is_in_the_queue(quick, node, tmp_path):
  log = log_of(tmp_path, "a")
  one, other = Slurm(tmp_path, SHORT), Slurm(tmp_path, SHORT)
  job = one.submit(python(SAVES), None, log)
  assert other.submit(python(SAVES), None, log) == job
  assert queue(node) == [job.number]
  elsewhere = other.submit(python(SAVES), None, log_of(tmp_path, "b"))
  assert elsewhere.number != job.number
  for each in (job, elsewhere):
    while other.poll(each) is None:  # again and again: what has just begun hears no signal
      other.cancel(each)
      time.sleep(0.1)
  again = other.submit(python("pass"), None, log)
  assert again.number not in (job.number, elsewhere.number)
  assert ended(other, again) == 0


def test_mistakes_are_one_sentence(quick, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="--resources time="):
    Slurm(tmp_path, {})
  launcher = Slurm(tmp_path, {**SHORT, "partition": "none-such"})
  with pytest.raises(ValueError, match=r"sbatch refuses.* partition") as caught:
    launcher.submit(python("pass"), None, log_of(tmp_path, "a"))
  assert "\n" not in str(caught.value)
  launcher = Slurm(tmp_path, SHORT)
  (tmp_path / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
  (tmp_path / "squeue").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  with pytest.raises(OSError, match="squeue fails: no controller"):
    launcher.submit(python("pass"), None, log_of(tmp_path, "a"))


def environment_of(node, cache):
  flags = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
  return node | {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": flags,
    "LARPO_CACHE": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def sweep(tmp_path, *more):
  page = tmp_path / "page.py"
  page.write_text(
    "from experiments import quickstart\n\n\ndef get_config(arg=''):\n"
    "  config = quickstart.get_config('smoke')\n  config.supervised.steps = 12\n"
    "  config.rounds.count = 1\n  config.checkpoint.every = 2\n  return config\n\n\n"
    f"def sweep():\n  for number in range({POINTS}):\n    yield {{'loss.beta': 0.1 + number}}\n"
  )
  command = [sys.executable, "-m", "larpo_jax.sweep", f"--config={page}", "--together=1"]
  return [*command, f"--workdir={tmp_path}/sweep", "--launcher=slurm", *more]


@pytest.mark.timeout(600)
def test_a_real_sweep_is_preempted_and_loses_its_launcher(node, tmp_path):
  command = sweep(tmp_path, "--resources=time=30,cpus-per-task=2")
  environment = environment_of(node, tmp_path / "cache")
  run = dict(env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  names = [f"beta={0.1 + number:g},seed=0" for number in range(POINTS)]
  first = subprocess.Popen(command, **run)
  try:
    metrics = tmp_path / "sweep" / names[0] / "metrics.jsonl"
    says(metrics, "supervised", 120)
    running = dict(line.split("|") for line in queue(node, "%j|%i"))
    (preempted,) = [number for name, number in running.items() if name.startswith(names[0])]
    assert len(running) == POINTS
  finally:
    first.kill()
    first.communicate()
  subprocess.run(["scancel", "--signal=TERM", preempted], env=node, check=True)
  second = subprocess.run(command, **run, timeout=400)
  assert second.returncode == 0, second.stdout
  assert f"all {POINTS} runs are done" in second.stdout
  for name in names:
    assert (tmp_path / "sweep" / name / "results" / "summary.json").exists()
  submitted = sorted(path.name for path in (tmp_path / "sweep" / "slurm").glob("*_submission.sh"))
  assert submitted == sorted(f"{number}_submission.sh" for number in running.values())
  shown = subprocess.run(
    ["scontrol", "show", "job", preempted], env=node, capture_output=True, text=True, check=True
  )
  assert "Restarts=1" in shown.stdout
  assert "asked to stop: saving" in (tmp_path / "sweep" / names[0] / "log.txt").read_text()


@pytest.mark.timeout(600)
def test_the_tasks_of_a_job_are_one_run(node, tmp_path):
  options = "--resources=time=30,ntasks=2,cpus-per-task=1"
  command = sweep(tmp_path, "--only=0", "--config.mesh.data=1", "--config.mesh.fsdp=2", options)
  environment = environment_of(node, tmp_path / "cache")
  done = subprocess.run(
    command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
  )
  workdir = tmp_path / "sweep" / "beta=0.1,seed=0"
  logs = [path.read_text() for path in workdir.glob("log*.txt")]
  assert done.returncode == 0, (done.stdout, logs)
  assert json.loads((workdir / "hardware.json").read_text())["processes"] == 2
  assert len(logs) == 2
  assert sum("gold reward" in log for log in logs) == 1, "process 0 speaks for both"


def test_a_launcher_that_is_asked_stops_its_jobs(node, tmp_path):
  command = sweep(tmp_path, "--resources=time=30,cpus-per-task=2", "--only=0,1")
  run = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  environment = environment_of(node, tmp_path / "cache")
  launcher = subprocess.Popen(command, env=environment, **run)
  says(tmp_path / "sweep" / "beta=0.1,seed=0" / "log.txt", "supervised", 120)
  launcher.send_signal(signal.SIGTERM)
  said, _ = launcher.communicate(timeout=120)
  assert launcher.returncode == preemption.REQUEUE, said
  assert queue(node) == []
