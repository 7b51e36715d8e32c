"""Weights & Biases gets the rows of metrics.jsonl, keeps no secret, and never ends a run."""

import json
import math
import os
from pathlib import Path
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from whole_runs import finish, make_pairs, real, start
from workdir_test import CANARIES, secretive

from larpo_jax import tracking, workdir, writers

ROOT = Path(__file__).parent.parent
ASKED = {tracking.WANDB: "a-project"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  """What wandb writes beside the run, and whatever it asks the network for, stays here."""
  pytest.importorskip("wandb")
  settings = dict(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_API_KEY=CANARIES[2])
  for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
    settings[f"WANDB_{name}"] = str(tmp_path / "elsewhere")
  for name, value in settings.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv("WANDB_SERVICE", raising=False)  # each process has its own


def records(path):
  """The records of an offline run's file: LevelDB's log format after a header of 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  content, place, record = path.read_bytes(), 7, b""
  assert content.startswith(b":W&B")
  while place + 7 <= len(content):
    if 32768 - place % 32768 < 7:  # a chunk's header is never cut in two
      place += 32768 - place % 32768
      continue
    _, size, kind = struct.unpack("<IHB", content[place : place + 7])
    if place + 7 + size > len(content):
      return  # still being written
    record += content[place + 7 : place + 7 + size]
    place += 7 + size
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(record)
      record = b""


def sessions(directory):
  """The records of each start of a run, the first start first, once wandb has written the last."""
  paths = (directory / "wandb").glob("offline-run-*/*.wandb")
  paths, until = sorted(paths, key=lambda path: path.parent.name), time.monotonic() + 30
  found = [list(records(path)) for path in paths]
  while not all(of_kind(session, "exit") for session in found):
    assert time.monotonic() < until
    time.sleep(0.1)
    found = [list(records(path)) for path in paths]
  return found


def of_kind(session, kind):
  return [getattr(r, kind) for r in session if r.WhichOneof("record_type") == kind]


def sent(session):
  """The rows of a session as metrics.jsonl has them: {"stage", "step", name: number}."""
  rows = []
  for history in of_kind(session, "history"):
    names = ["/".join(item.nested_key) or item.key for item in history.item]
    values = [json.loads(item.value_json) for item in history.item]
    row = {name: value for name, value in zip(names, values) if not name.startswith("_")}
    (stage,) = {name.split("/")[0] for name in row}
    rows.append({"stage": stage, **{name.split("/", 1)[1]: value for name, value in row.items()}})
  return rows


def kept(directory):
  """The rows of metrics.jsonl, one a line."""
  rows = workdir.read_jsonl(directory / writers.METRICS)
  return [{k: v if k == "stage" else float(v) for k, v in row.items()} for row in rows]


def same(found, expected):
  assert len(found) == len(expected)
  for row, wanted in zip(found, expected):
    assert row.keys() == wanted.keys()
    for key, value in wanted.items():
      nan = isinstance(value, float) and math.isnan(value)
      assert math.isnan(row[key]) if nan else row[key] == value, (row, wanted)


def write(writer, generator, stage, steps):
  for step in steps:
    numbers = dict(zip(("loss", "rewards/margins", "a.b"), generator.normal(size=3)))
    writer.write(step, numbers | {"num_tokens": int(generator.integers(10**12))}, stage=stage)
    if step % 3 == 0:
      writer.write(step, {"eval_kl": generator.choice([math.nan, math.inf, -1e-300])}, stage=stage)


def test_what_is_sent_is_what_metrics_jsonl_says(tmp_path, seed):
  generator = np.random.default_rng(seed)
  workdir.record_run(tmp_path, {"seed": 3, "loss": {"beta": 0.5}})
  writer = writers.Writer(tmp_path, ASKED)
  write(writer, generator, "supervised", range(1, 9))
  write(writer, generator, "rounds", [0])
  write(writer, generator, "round_0", range(2, 300, 2))
  writer.close()
  (session,) = sessions(tmp_path)
  assert len(kept(tmp_path)) > 150
  same(sent(session), kept(tmp_path))
  (about,) = of_kind(session, "run")
  assert about.project == "a-project"
  assert about.run_id == (tmp_path / tracking.WANDB_ID).read_text().strip()
  config = {item.key: json.loads(item.value_json) for item in about.config.update}
  assert {"seed": 3, "loss": {"beta": 0.5}}.items() <= config.items()
  axes = {(each.glob_name, each.step_metric) for each in of_kind(session, "metric")}
  stages = ("supervised", "rounds", "round_0")
  assert {(f"{stage}/*", f"{stage}/step") for stage in stages} <= axes
  assert [each.exit_code for each in of_kind(session, "exit")] == [0]


def interrupted(writer):
  """Closes as a run does that an exception ends."""
  try:
    raise KeyError
  finally:
    writer.close()


def test_a_resumed_run_goes_on_with_the_same_run_and_repeats_what_it_repeats(tmp_path, seed):
  generator = np.random.default_rng(seed)
  writer = writers.Writer(tmp_path, ASKED)
  write(writer, generator, "align", range(1, 8))
  with pytest.raises(KeyError):
    interrupted(writer)
  before = kept(tmp_path)
  time.sleep(1)  # the names of wandb's directories have seconds
  writer = writers.Writer(tmp_path, ASKED)
  writer.rewind(4, stage="align")
  write(writer, generator, "align", range(5, 10))
  writer.close()
  first, second = sessions(tmp_path)
  same(sent(first), before)
  same(sent(second), [row for row in kept(tmp_path) if row["step"] > 4])
  about = [of_kind(session, "run")[0] for session in (first, second)]
  assert about[0].run_id == about[1].run_id
  assert about[1].resume
  ends = [of_kind(session, "exit")[0].exit_code for session in (first, second)]
  assert ends == [1, 0], "the first one ended by an exception"


def test_a_run_that_asks_for_it_later_sends_what_it_has(tmp_path, seed):
  generator = np.random.default_rng(seed)
  for environment, steps in (({}, range(1, 6)), (ASKED, range(6, 9))):
    writer = writers.Writer(tmp_path, environment)
    write(writer, generator, "align", steps)
    writer.close()
  (session,) = sessions(tmp_path)
  same(sent(session), kept(tmp_path))


SECRETIVE = """
import sys
from larpo_jax import workdir, writers
from workdir_test import secretive
workdir.record_run(sys.argv[1], secretive())
writer = writers.Writer(sys.argv[1])
print("a canary:", sys.argv[2], flush=True)
writer.write(1, {"loss": 1.0})
writer.close()
"""


def python(code, *arguments, **environment):
  paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
  process = subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": paths, **environment},
  )
  assert process.returncode == 0, process.stderr
  return process


def test_no_secret_is_sent(tmp_path):
  """Neither of the config nor of the command line, the environment, or what is printed."""
  python(SECRETIVE, tmp_path, CANARIES[2], HF_TOKEN=CANARIES[0], **ASKED)
  written = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert any(path.suffix == ".wandb" for path in written)
  for path in written:
    content = path.read_bytes()
    assert not [canary for canary in CANARIES if canary.encode() in content], path
  (session,) = sessions(tmp_path)
  (about,) = of_kind(session, "run")
  config = {item.key: json.loads(item.value_json) for item in about.config.update}
  assert config["tracker"]["api_key"] == "***"
  assert config["tokenizer"]["path"] == secretive().tokenizer.path


BROKEN = """
import os, sys, time, psutil
from larpo_jax import writers
writer = writers.Writer(sys.argv[1])
for step in range(1, 9):
  if step == 4:
    for child in psutil.Process().children(recursive=True):
      child.kill()
    time.sleep(0.5)
  writer.write(step, {"loss": step / 3})
writer.close()
"""


@pytest.mark.parametrize("mode", ["offline", "nonsense"])
def test_a_run_outlives_wandb(tmp_path, mode):
  """Whose process is killed halfway, or which cannot even start."""
  process = python(BROKEN, tmp_path, **ASKED, WANDB_MODE=mode)
  assert process.stderr.count("Weights & Biases gets no more rows") == 1
  assert [row["step"] for row in kept(tmp_path)] == list(range(1, 9))
  started = list(tmp_path.glob("wandb/*/*.wandb"))
  assert bool(started) == (mode == "offline")


def test_a_missing_wandb_is_said_at_once(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(
    ValueError, match=r"install the extra track \(pip install 'larpo_jax\[track\]"
  ):
    writers.Writer(tmp_path, ASKED)
  writers.Writer(tmp_path, {}).close()


def test_nobody_else_imports_or_starts_it(tmp_path, monkeypatch):
  code = "import sys; from larpo_jax import writers, main; writers.Writer(sys.argv[1]).close()"
  python(f"{code}; assert 'wandb' not in sys.modules", tmp_path / "run", **{tracking.WANDB: ""})
  assert not (tmp_path / "run" / tracking.WANDB_ID).exists()
  monkeypatch.setattr("jax.process_index", lambda: 1)
  writer = writers.Writer(tmp_path / "other", ASKED)
  writer.write(1, {"loss": 1.0})
  writer.close()
  assert not (tmp_path / "other").exists()


def test_the_command_line_asks_for_it(tmp_path):
  """By a run that ends as soon as it looks for its model."""
  words = [*real(tmp_path / "absent", make_pairs(tmp_path / "pairs.jsonl", 4)), "--wandb=a-project"]
  code, output = finish(start(tmp_path / "run", *words, cache=tmp_path))
  assert code == 1, output
  (session,) = sessions(tmp_path / "run")
  assert of_kind(session, "run")[0].project == "a-project"
  assert of_kind(session, "exit")[0].exit_code == 1
  without = "import runpy, sys; sys.modules['wandb'] = None; "
  without += "runpy.run_module('larpo_jax.main', run_name='__main__', alter_sys=True)"
  code, output = finish(start(tmp_path / "none", *words, cache=tmp_path, code=without))
  assert code == 1
  assert "larpo_jax: error: Weights & Biases was asked for and cannot be imported" in output
  assert "Traceback" not in output
