"""metrics.jsonl is the truth, and TensorBoard agrees with it, whatever was killed."""

import io
import json
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from larpo_jax import curves, tracking, writers


def events(workdir, stage):
  """{(tag, step): value} as TensorBoard shows it: a restart hides what is at its step and after."""
  found = {}
  for path in sorted((workdir / tracking.EVENTS / stage).glob("events*")):
    content = path.read_bytes()
    while len(content) >= 12:
      (length,) = struct.unpack("<Q", content[:8])
      event = Event.FromString(content[12 : 12 + length])
      content = content[16 + length :]
      if event.HasField("session_log") and event.session_log.status == 1:
        found = {key: value for key, value in found.items() if key[1] < event.step}
      for value in event.summary.value:
        assert (value.tag, event.step) not in found, "a step is there twice"
        found[value.tag, event.step] = value.simple_value
  return found


def test_rows_and_events_say_the_same(tmp_path):
  writer = writers.Writer(tmp_path)
  for step in (10, 20):
    writer.write(step, {"loss": jnp.float32(step / 3), "rank/accuracy": np.float64(0.5)}, "a")
  writer.write(20, {"eval_loss": 7}, stage="a")
  writer.write(20, {"loss": 1.0}, stage="b")
  writer.close()
  rows = writers.read(tmp_path)
  assert [(row["stage"], row["step"]) for row in rows] == [("a", 10), ("a", 20), ("b", 20)]
  loss = float(np.float32(20 / 3))
  expected = {"loss": loss, "rank/accuracy": 0.5, "eval_loss": 7}
  assert rows[1] == {"stage": "a", "step": 20, **expected}
  for row in rows:
    shown = events(tmp_path, row["stage"])
    for name in set(row) - {"stage", "step"}:
      assert shown[name, row["step"]] == pytest.approx(row[name])


def test_what_is_not_finite_is_valid_json_and_comes_back(tmp_path):
  writer = writers.Writer(tmp_path)
  values = {
    "a": float("nan"),
    "b": jnp.inf,
    "c": -jnp.inf,
    "d": jnp.bfloat16(2),
    "e": np.bool_(True),
  }
  writer.write(1, values)
  writer.close()
  line = (tmp_path / writers.METRICS).read_text()
  json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
  row = writers.read(tmp_path)[0]
  assert np.isnan(row["a"])
  assert (row["b"], row["c"], row["d"], row["e"]) == (np.inf, -np.inf, 2.0, 1.0)


@pytest.mark.parametrize("value", [np.zeros(3), "0.5", None, [1, 2], np.complex64(1)])
def test_what_is_no_number_is_refused_by_name(tmp_path, value):
  writer = writers.Writer(tmp_path)
  with pytest.raises(ValueError, match="'rewards/margins' must be one number"):
    writer.write(1, {"rewards/margins": value})
  writer.close()
  assert writers.read(tmp_path) == []


def train(workdir, restored, until, *, log_every=1):
  """What a run does from its checkpoint at `restored` to a kill after `until`."""
  writer = writers.Writer(workdir)
  writer.rewind(restored, stage="train")
  for step in range(restored + 1, until + 1):
    if step % log_every == 0:
      writer.write(step, {"loss": step * 2.0})
  return writer


def test_kills_leave_no_step_twice_and_none_out(tmp_path, seed):
  generator = np.random.default_rng(seed)
  path, saved, reached, killed = tmp_path / writers.METRICS, 0, 0, []
  writers.Writer(tmp_path).write(3, {"loss": 1.0}, stage="before")
  for _ in range(6):
    reached = saved + int(generator.integers(1, 9))
    killed.append(train(tmp_path, saved, reached))  # never closed, not even by being forgotten
    content = path.read_bytes()
    last = content.rfind(b"\n", 0, -1) + 1
    path.write_bytes(content[: int(generator.integers(last, len(content) + 1))])
    # The last row may be torn off, so the checkpoint is at most of the row before.
    saved = int(generator.integers(saved, reached))
  writer = train(tmp_path, saved, saved + 3)
  writer.close()
  rows = [row for row in writers.read(tmp_path) if row["stage"] == "train"]
  assert [row["step"] for row in rows] == list(range(1, saved + 4))
  assert all(row["loss"] == row["step"] * 2 for row in rows)
  assert len(path.read_text().splitlines()) == saved + 4
  assert writers.read(tmp_path)[0] == {"stage": "before", "step": 3, "loss": 1.0}
  shown = events(tmp_path, "train")
  assert [step for _, step in shown] == list(range(1, saved + 4))


def test_a_torn_line_is_mended_even_without_a_rewind(tmp_path):
  path = tmp_path / writers.METRICS
  path.write_text('{"stage": "train", "step": 1, "loss": 1.0}\n{"stage": "train", "st')
  writer = writers.Writer(tmp_path)
  writer.write(2, {"loss": 2.0})
  writer.close()
  assert [row["step"] for row in writers.read(tmp_path)] == [1, 2]


def test_other_processes_write_nothing(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr("jax.process_index", lambda: 1)
  writer = writers.Writer(tmp_path / "run")
  writer.write(1, {"loss": 1.0})
  writer.rewind(0)
  writer.close()
  with writers.Progress("train", total=2, every=0.0) as progress:
    progress.update(1, loss=1.0)
  assert not (tmp_path / "run").exists()
  assert capfd.readouterr().err == ""


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
  monkeypatch.setattr(sys, "stderr", Terminal())
  with writers.Progress("round 1", total=100, start=40) as progress:
    for step in range(41, 101):
      progress.update(step, tokens=1000, responses=8, loss=0.25)
    text = sys.stderr.getvalue()
  shown = sys.stderr.getvalue()
  assert "round 1" in text
  assert "100/100" in shown
  assert "tokens/s" in shown
  assert "responses/s" in shown
  assert "loss 0.25" in shown


def test_progress_is_a_line_now_and_then_elsewhere(monkeypatch, capsys):
  clock = iter(np.arange(0.0, 1000.0, 1.0))
  monkeypatch.setattr("time.monotonic", lambda: next(clock))
  with writers.Progress("train", total=50, every=10.0) as progress:
    for step in range(1, 51):
      progress.update(step, tokens=100, loss=1.0)
  lines = capsys.readouterr().err.splitlines()
  assert 3 <= len(lines) <= 12
  assert all(line.startswith("train: ") and "tokens/s, loss 1" in line for line in lines)
  assert "s left" in lines[0]
  assert "50/50 step" in lines[-1]


def test_curves_are_drawn_for_what_there_is(tmp_path):
  writer = writers.Writer(tmp_path)
  for stage in ("round_0", "round_1"):
    for step in range(1, 60):
      writer.write(step, {"loss": 1 / step, "kl": step, "rewards/margins": float("nan")}, stage)
  writer.write(1, {"gold/reward": 0.5, "length": 20}, stage="rounds")
  writer.write(1, {"something": 0.5}, stage="other")
  writer.close()
  paths = curves.plot(tmp_path)
  assert [path.name for path in paths] == ["round.png", "rounds.png"]
  for path in paths:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 5000
  with pytest.raises(ValueError, match="directory"):
    curves.plot(writers.read(tmp_path))
  assert curves.plot([], tmp_path / "none") == []
