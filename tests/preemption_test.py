"""A signal, in whatever loop it comes, ends in a save and the exit code that asks for a requeue."""

import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import pytest

from larpo_jax import preemption

ROOT = Path(__file__).parent.parent
LOOPS = """
import os, sys, time
import jax
if len(sys.argv) > 1:
  jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from larpo_jax import preemption
with preemption.Guard() as guard:
  print("ready", flush=True)
  for stage in range(3000):
    for step in range(1):  # the shortest of stages: steps begin again and again
      time.sleep(0.01)
      if guard.poll(step):
        print("saved", stage, step, guard.poll(step), flush=True)
        time.sleep(0.3)  # the save, during which impatient engines signal again
        sys.exit(preemption.REQUEUE)
"""


def start(*arguments):
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  process = subprocess.Popen(
    [sys.executable, "-c", LOOPS, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
  )
  return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_process_saves_and_leaves(number):
  process = start()
  assert process.stdout.readline() == "ready\n"
  process.send_signal(number)
  said = process.stdout.readline().split()
  process.send_signal(number)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert said[0] == "saved", err
  assert said[-1] == "True"
  assert process.returncode == preemption.REQUEUE == os.EX_TEMPFAIL


def test_two_processes_stop_at_the_same_step():
  with socket.socket() as opened:
    opened.bind(("localhost", 0))
    address = f"localhost:{opened.getsockname()[1]}"
  processes = [start(address, str(index)) for index in range(2)]
  for process in processes:
    assert process.stdout.readline() == "ready\n"
  time.sleep(0.3)
  processes[1].send_signal(signal.SIGUSR1)  # which is passed on as SIGTERM
  out = []
  for process in processes:
    said, err = process.communicate(timeout=60)
    assert "saved" in said, err[-2000:]
    assert process.returncode == preemption.REQUEUE
    out.append(said)
  assert out[0] == out[1]


def test_no_signal_no_stop_and_handlers_come_back():
  before = [signal.getsignal(number) for number in preemption.SIGNALS]
  with preemption.Guard() as guard:
    assert not any(guard.poll(step) for step in range(5))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    assert guard.poll(5)
    assert guard.stopping
    os.kill(os.getpid(), signal.SIGUSR1)
    assert guard.poll(0), "once true, always true"
  assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
