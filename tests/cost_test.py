"""What a run has cost, from what it wrote."""

import time

import pytest

from larpo_jax import cost, writers


def test_seconds_add_up_over_processes_and_are_shared_by_lanes(tmp_path):
  for share in (1.0, 0.5):
    with cost.timed(tmp_path, share):
      time.sleep(0.2)
  assert cost.known(tmp_path) == pytest.approx(0.3, abs=0.1)

  def stopped():
    with cost.timed(tmp_path):
      time.sleep(0.2)
      raise RuntimeError("stopped")

  with pytest.raises(RuntimeError):
    stopped()
  assert cost.known(tmp_path) == pytest.approx(0.5, abs=0.15)


def test_steps_and_tokens_are_of_all_stages(tmp_path):
  writer = writers.Writer(tmp_path)
  for step, tokens in ((10, 100), (20, 300)):  # every tenth step is logged
    writer.write(step, {"loss": 1.0, "num_tokens": tokens}, stage="supervised")
  writer.write(4, {"num_tokens": 50}, stage="round_0")
  for number, tokens in enumerate((70, 80)):
    writer.write(number, {"eval_kl": 0.0, "candidates/tokens": tokens}, stage="rounds")
  writer.close()
  found = cost.of(tmp_path)
  assert found["steps"] == 24
  assert found["trained_tokens"] == 20 * 200 + 4 * 50
  assert found["generated_tokens"] == 150
  assert found["seconds"] == 0.0
  assert found["peak_memory_bytes"] > 1e6
