"""Ray for real, a cluster on this machine: exit codes, stopping, and a sweep of real runs."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

from jobs import SAVES, ended, python, says
import pytest

from larpo_jax import preemption
from larpo_jax.sweep import local
from larpo_jax.sweep import ray as launchers

ROOT = pathlib.Path(__file__).parent.parent
ONE = {"mesh": dict(data=-1, fsdp=1, tensor=1)}
POINTS = 4


def test_a_job_asks_for_what_its_mesh_needs():
  two = {"mesh": dict(data=1, fsdp=2, tensor=1)}
  ask = launchers.options
  assert ask(two, {"CPU": 64.0, "GPU": 8.0}, {}) == {"num_cpus": local.CORES, "num_gpus": 2}
  assert ask(two, {"CPU": 64.0}, {}) == {"num_cpus": local.CORES, "memory": local.MEMORY}
  assert ask(ONE, {"CPU": 1.0}, {})["num_cpus"] == 1, "what there is not would be waited for"
  wanted = {"num_gpus": 4, "TPU": 8}
  assert ask(ONE, {"CPU": 2.0, "GPU": 8.0}, wanted) == {
    "num_cpus": 2,
    "num_gpus": 4,
    "resources": {"TPU": 8},
  }
  with pytest.raises(ValueError, match="num_cpus=many"):
    launchers.number("num_cpus", "many")


@pytest.fixture(scope="module")
def cluster():
  """Of two CPUs, in this process; its workers find the package as this one does."""
  patch = pytest.MonkeyPatch()
  patch.setenv("PYTHONPATH", str(ROOT))
  patch.delenv("RAY_ADDRESS", raising=False)
  before = signal.getsignal(signal.SIGTERM)
  launcher = launchers.Ray({"num_cpus": "0.5", "memory": "1e6"})
  signal.signal(signal.SIGTERM, before)
  yield launcher
  launcher._ray.shutdown()
  patch.undo()


@pytest.mark.ray
def test_exit_codes_and_output_come_back(cluster, tmp_path):
  codes = ("print('fine')", "print('bad'); raise SystemExit(3)")
  logs = [tmp_path / name for name in ("a.txt", "b.txt")]
  jobs = [cluster.submit(python(code), ONE, log) for code, log in zip(codes, logs)]
  assert [ended(cluster, job) for job in jobs] == [0, 3]
  assert [log.read_text() for log in logs] == ["fine\n", "bad\n"]


@pytest.mark.ray
def test_what_runs_is_told_to_save_and_what_waits_is_taken_back(cluster, tmp_path, monkeypatch):
  running = cluster.submit(python(SAVES), ONE, tmp_path / "a.txt")
  monkeypatch.setattr(cluster, "_wanted", {"num_cpus": 1000})
  waiting = cluster.submit(python(SAVES), ONE, tmp_path / "b.txt")
  monkeypatch.setattr(cluster, "slots", 2)
  assert not cluster.free(ONE)
  says(tmp_path / "a.txt", "ready")
  for job in (running, waiting, running):
    assert cluster.poll(job) is None
    cluster.cancel(job)
  assert [ended(cluster, job) for job in (running, waiting)] == [preemption.REQUEUE] * 2
  assert not (tmp_path / "b.txt").exists()
  assert cluster.free(ONE)


@pytest.mark.ray
def test_a_lost_node_is_a_failure(cluster, tmp_path):
  kills = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
  job = cluster.submit(python(kills), ONE, tmp_path / "a.txt")
  assert ended(cluster, job) == 1


@pytest.mark.ray
def test_no_cluster_is_one_sentence(tmp_path):
  page = written(tmp_path)
  done = subprocess.run(
    [*sweep(tmp_path, page), "--resources=address=127.0.0.1:1"],
    env=environment_of(tmp_path),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  (line,) = [line for line in done.stderr.splitlines() if "larpo_jax: error" in line]
  assert "no cluster of Ray answers at '127.0.0.1:1'" in line
  assert "Traceback" not in done.stderr


def environment_of(tmp_path):
  kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
  return kept | {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"]),
    "LARPO_CACHE": str(tmp_path / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def written(tmp_path):
  page = tmp_path / "page.py"
  page.write_text(
    "from experiments import quickstart\n\n\ndef get_config(arg=''):\n"
    "  config = quickstart.get_config('smoke')\n  config.supervised.steps = 12\n"
    "  config.rounds.count = 1\n  config.checkpoint.every = 2\n  return config\n\n\n"
    f"def sweep():\n  for number in range({POINTS}):\n    yield {{'loss.beta': 0.1 + number}}\n"
  )
  return page


def sweep(tmp_path, page):
  command = [sys.executable, "-m", "larpo_jax.sweep", f"--config={page}", "--together=1"]
  return [*command, f"--workdir={tmp_path}/sweep", "--launcher=ray"]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_real_sweep_is_stopped_and_goes_on(tmp_path):
  command = [*sweep(tmp_path, written(tmp_path)), "--resources=num_cpus=1,memory=1e9"]
  run = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  first = subprocess.Popen(command, env=environment_of(tmp_path), **run)
  says(tmp_path / "sweep" / "beta=0.1,seed=0" / "metrics.jsonl", "supervised", 120)
  first.send_signal(signal.SIGTERM)
  said, _ = first.communicate(timeout=120)
  assert first.returncode == preemption.REQUEUE, said
  workdir = tmp_path / "sweep" / "beta=0.1,seed=0"
  assert "asked to stop: saving" in (workdir / "log.txt").read_text()
  assert not (workdir / "results" / "summary.json").exists()
  second = subprocess.run(command, env=environment_of(tmp_path), **run, timeout=400, check=False)
  assert second.returncode == 0, second.stdout
  assert f"all {POINTS} runs are done" in second.stdout
  index = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
  assert len(index) == POINTS
  for line in index:
    assert (tmp_path / "sweep" / line["name"] / "results" / "summary.json").exists()
