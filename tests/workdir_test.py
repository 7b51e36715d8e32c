"""One live run at a time; files that are whole or absent; no secrets in what is recorded."""

import errno
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import common
from larpo_jax import workdir

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from larpo_jax import workdir
with workdir.claim(sys.argv[1]):
  print("claimed", flush=True)
  time.sleep(60)
"""


def test_a_second_run_is_told_who_has_the_workdir_until_that_is_dead(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert holder.stdout.readline() == "claimed\n"
  began = time.monotonic()
  said = rf"in use by pid {holder.pid} on {re.escape(os.uname().nodename)}"
  with pytest.raises(OSError, match=said), workdir.claim(tmp_path):
    pass
  assert time.monotonic() - began < 2
  assert holder.poll() is None
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert json.loads((tmp_path / workdir.LOCK).read_text())["pid"] == holder.pid
  with workdir.claim(tmp_path) as path:
    assert path == tmp_path
    assert json.loads((tmp_path / workdir.LOCK).read_text())["pid"] == os.getpid()
  with workdir.claim(tmp_path):
    pass


def test_a_claim_makes_the_workdir_and_ends_with_an_error_inside(tmp_path):
  with pytest.raises(KeyError), workdir.claim(tmp_path / "a" / "b"):
    raise KeyError
  with workdir.claim(tmp_path / "a" / "b"):
    pass
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(OSError, match="give another --workdir"),
    workdir.claim(tmp_path / "file" / "run"),
  ):
    pass


def test_json_is_whole_or_absent(tmp_path, monkeypatch):
  path = tmp_path / "value.json"
  workdir.write_json(path, {"a": (1, np.float32(2.5)), "b": float("nan"), "c": -np.inf, "d": None})
  expected = {"a": [1, 2.5], "b": "nan", "c": "-inf", "d": None}
  assert json.loads(path.read_text(), parse_constant=lambda _: pytest.fail("no JSON")) == expected

  def no_space(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", no_space)
  with pytest.raises(OSError, match=rf"{path} was not written: the disk is full.*MB is free"):
    workdir.write_json(path, {"a": 1})
  assert json.loads(path.read_text()) == expected
  assert os.listdir(tmp_path) == ["value.json"]


def test_a_torn_last_line_is_dropped_and_a_broken_one_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  assert workdir.read_jsonl(path) == []
  rows = [{"step": step, "text": "é" * step} for step in range(4)]
  whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
  last = len(json.dumps(rows[-1], ensure_ascii=False).encode()) + 1
  path.write_bytes(whole)
  assert workdir.read_jsonl(path) == rows
  for cut in range(1, last + 1):  # every byte at which a kill may cut, in the middle of an é too
    path.write_bytes(whole[:-cut])
    assert workdir.read_jsonl(path) == rows[:-1]
  path.write_bytes(whole.replace(b'"step": 1', b'"step": ;'))
  with pytest.raises(ValueError, match="line 2 is no JSON"):
    workdir.read_jsonl(path)


CANARIES = ("hf_CanaryCanaryCanary1", "sk-canary0123456789", "plain-canary-value", "canary:pass")


def secretive():
  config = common.base()
  config.model.path = f"https://{CANARIES[3]}@host/model?x={CANARIES[0]}"
  config.tokenizer.path = "the/tokenizer"
  config.data.train.path = f"{CANARIES[1]}/train.jsonl"
  config.tracker = dict(api_key=CANARIES[2], password=CANARIES[2], inner=dict(HF_TOKEN=CANARIES[2]))
  config.secrets = dict(anything=(CANARIES[2], dict(deep=CANARIES[2])))
  config.rounds = dict(max_tokens=40)
  return config


def test_no_secret_is_recorded(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", CANARIES[0])
  monkeypatch.setenv("WANDB_API_KEY", CANARIES[2])
  workdir.record_run(tmp_path, secretive())
  written = {path.name: path.read_text() for path in tmp_path.iterdir()}
  assert sorted(written) == ["config.json", "hardware.json", "versions.json"]
  for text in written.values():
    assert not [canary for canary in CANARIES if canary in text]
  kept = json.loads(written["config.json"])
  assert kept["tokenizer"]["path"] == "the/tokenizer"
  assert kept["rounds"]["max_tokens"] == 40
  assert kept["data"]["train"]["path"].endswith("/train.jsonl")
  versions = json.loads(written["versions.json"])
  assert versions["python"] == sys.version.split()[0]
  assert {"jax", "flax", "optax"} <= set(versions)


def test_a_workdir_takes_one_config(tmp_path):
  config = common.base()
  workdir.record_run(tmp_path, config)
  workdir.record_run(tmp_path, config)
  config.log_every, config.checkpoint.keep, config.mesh.fsdp = 1, 9, 2
  workdir.record_run(tmp_path, config)
  config.optimizer.learning_rate = 0.5
  with pytest.raises(ValueError, match=r"optimizer.learning_rate = 1e-06 there, 0.5 here"):
    workdir.record_run(tmp_path, config)
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["optimizer"]["learning_rate"] == 1e-6


def test_resuming_reads_json_and_runs_nothing(tmp_path):
  workdir.record_run(tmp_path, common.base())
  (tmp_path / "config.py").write_text("import sys; sys.exit('executed')")
  workdir.record_run(tmp_path, common.base())
  (tmp_path / "config.json").write_text("__import__('sys').exit('executed')")
  with pytest.raises(ValueError, match=r"config.json is no JSON"):
    workdir.record_run(tmp_path, common.base())
