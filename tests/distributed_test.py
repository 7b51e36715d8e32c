"""Two processes of four devices train as one process of eight does."""

import os
from pathlib import Path
import re
import socket
import subprocess
import sys

import distributed_run
import numpy as np
import pytest

from larpo_jax import processes, sharding

HERE = Path(__file__).parent


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def start(number, port, *arguments):
  environment = dict(os.environ)
  environment["XLA_FLAGS"] = re.sub(r"(device_count)=\d+", r"\1=4", environment["XLA_FLAGS"])
  environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
  environment |= {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(number),
  }
  command = [sys.executable, str(HERE / "distributed_run.py"), *map(str, arguments)]
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  return subprocess.Popen(command, env=environment, **pipes)


def test_two_processes_are_one(seed, tmp_path):
  port, writer = free_port(), seed % 2
  both = [start(number, port, seed, writer, tmp_path / "found.npz") for number in (0, 1)]
  try:
    # Meanwhile, the same in this process.
    wanted = distributed_run.run(seed, sharding.make_mesh(dict(data=2, fsdp=2, tensor=2)))
    outputs = [process.communicate(timeout=300)[0] for process in both]
  finally:
    for process in both:
      process.kill()
  assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)[-4000:]
  found = np.load(tmp_path / "found.npz")
  assert set(found) == set(wanted)
  for name, value in wanted.items():
    scale = max(1.0, np.max(np.abs(value)))
    np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("given", [{}, {"JAX_NUM_PROCESSES": "2"}])
def test_an_address_alone_names_what_is_missing(given):
  with pytest.raises(ValueError, match="JAX_PROCESS_ID not: set all three"):
    processes.start({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"} | given)
