"""Run directories as the library leaves them behind, with settings and results at random."""

import json
import os

from larpo_jax import workdir
from larpo_jax.runs import __main__ as runs
from larpo_jax.runs import read

LOSSES = ("pairwise.dpo", "listwise.listmle", "pairwise.simpo")


def make(run, generator, *, done=True, **config):
  """A run as the library leaves one behind, with settings and results at random."""
  loss = {"name": generator.choice(LOSSES), "beta": generator.choice((0.05, 0.1, 1))}
  tree = {"seed": generator.randrange(3), "loss": loss, "export": generator.random() < 0.5}
  tree |= {"optimizer": {"learning_rate": 10 ** generator.uniform(-5, -2)}, "rounds": None}
  (run / "results").mkdir(parents=True)
  holder = {"pid": 2**22 + 1, "host": os.uname().nodename, "start": "2026-01-01 00:00:00"}
  (run / ".lock").write_text(json.dumps(holder))
  workdir.write_json(run / "config.json", tree | config)
  workdir.write_json(run / "versions.json", {"larpo_jax": "0.1.0", "commit": "a" * 40 + "+changes"})
  workdir.write_json(run / "hardware.json", {"devices": ["H100"] * 8})
  steps = range(1, generator.randrange(2, 9))
  rows = [{"stage": "align", "step": step, "loss": 1 / step} for step in steps]
  (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  if done:
    after = {"gold/reward": generator.random(), "kl": generator.choice((0.5, float("nan")))}
    sides = {"before": {"gold/reward": 0.0}, "after": after, "cost": {"seconds": 12.5, "steps": 4}}
    workdir.write_json(run / "results" / "summary.json", sides)
  return run


def make_many(directory, generator):
  """Runs in several folders, a few of them unfinished."""
  for name in [f"{folder}/run{number}" for folder in ("a", "b/c") for number in range(12)]:
    make(directory / name, generator, done=generator.random() < 0.8)
  return directory


def rows(directory, **how):
  return runs.listed(directory, **how)[0]


def truth(directory):
  """What the directories say, without an index, but for what the clock changes."""
  found = {}
  for run in read.find(directory):
    name = run.relative_to(directory).as_posix()
    found[name] = {**read.read(run, read.running(run)), "name": name}
  return found
