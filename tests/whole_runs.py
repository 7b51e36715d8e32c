"""Whole runs as a user starts them, in processes of their own, and what is left of them."""

import hashlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import safetensors.numpy

ROOT = pathlib.Path(__file__).parent.parent
QUICK = [
  "--config=experiments/quickstart.py:smoke",
  "--config.supervised.steps=12",
  "--config.rounds.steps_per_round=6",
  "--config.rounds.count=2",
  "--config.checkpoint.every=2",
]
TIMINGS = ("throughput/", "time/")


def start(workdir, *arguments, cache, devices=1, code="", **environment):
  """One device and a shared compilation cache, so that a run starts fast.

  code is Python that runs in place of larpo_jax.main.
  """
  flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
  settings = {
    **os.environ,
    "XLA_FLAGS": flags,
    "JAX_PLATFORMS": "cpu",
    "LARPO_CACHE": str(cache),
    "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  main = ["-c", code] if code else ["-m", "larpo_jax.main"]
  return subprocess.Popen(
    [sys.executable, *main, f"--workdir={workdir}", *arguments],
    cwd=ROOT,
    env=settings | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def start_two(workdir, *arguments, cache, code="", **environment):
  """The same command in two processes of one device each."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
  shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **environment}
  return [
    start(workdir, *arguments, cache=cache, code=code, JAX_PROCESS_ID=str(number), **shared)
    for number in (0, 1)
  ]


def make_pairs(path, count):
  """Writes so many rows of preference pairs."""
  row = '{{"prompt": "a{0}", "chosen": "yes {0}", "rejected": "no {0}"}}\n'
  path.write_text("".join(row.format(i) for i in range(count)))
  return path


def real(checkpoint, data, *more):
  """The arguments of a run on a checkpoint and pairs of one's own."""
  return [
    "--config=experiments/real/preference_pairs.py:smoke",
    f"--config.model.path={checkpoint}",
    f"--config.data.train.path={data}",
    f"--config.data.test.path={data}",
    "--config.data.reader.prompt=prompt",
    *more,
  ]


def finish(process, timeout=300):
  """Its exit code and all that it printed."""
  output, _ = process.communicate(timeout=timeout)
  return process.returncode, output


def weights(workdir):
  """The exported tensors."""
  return safetensors.numpy.load_file(workdir / "export" / "model.safetensors")


def candidates(workdir):
  """What each round sampled, as text."""
  paths = sorted(workdir.glob("rounds/*/candidates.jsonl"))
  return {str(path.relative_to(workdir)): path.read_text() for path in paths}


def digest(workdir):
  """Everything that a run computes: weights bit by bit, lists, metrics without timings."""
  found = candidates(workdir)
  tensors = weights(workdir)
  found["weights"] = {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in tensors.items()}
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  keep = lambda row: {k: v for k, v in row.items() if not k.startswith(TIMINGS)}  # noqa: E731
  found["metrics"] = sorted(json.dumps(keep(row), sort_keys=True) for row in rows)
  found["summary"] = json.loads((workdir / "results" / "summary.json").read_text())
  del found["summary"]["cost"]
  return found
