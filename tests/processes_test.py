"""Which environments mean that this is one of several processes."""

import jax
import pytest

from larpo_jax import processes


@pytest.fixture
def started(monkeypatch):
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
  return calls


@pytest.mark.parametrize(
  "environment",
  [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}],
)
def test_one_process_starts_nothing(environment, started):
  processes.start(environment)
  assert not started


@pytest.mark.parametrize(
  "environment",
  [
    {"SLURM_STEP_NUM_TASKS": "4"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},
    {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
  ],
)
def test_several_processes_start_with_a_short_heartbeat(environment, started):
  processes.start(environment)
  ((arguments, options),) = started
  assert options["heartbeat_timeout_seconds"] == processes.HEARTBEAT_SECONDS < 100
  if arguments:
    assert (arguments, options["num_processes"], options["process_id"]) == (("a:1",), 2, 1)


def test_half_an_address_is_refused(started):
  with pytest.raises(ValueError, match="JAX_PROCESS_ID"):
    processes.start({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"})
  assert not started
