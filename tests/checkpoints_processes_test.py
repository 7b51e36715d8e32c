"""Checkpoints when the disk is full, and the writer is killed or one of two."""

import errno
import json
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from larpo_jax import checkpoints
from larpo_jax.checkpoints import integrity

ROOT = Path(__file__).parent.parent


def make_state(seed=0):
  return {"x": np.random.default_rng(seed).normal(size=(100, 10))}


def same_bits(left, right):
  assert np.asarray(left["x"]).tobytes() == right["x"].tobytes()


# A disk that is full or cannot be written.


def test_full_disk_names_path_and_space(tmp_path, monkeypatch):
  store = checkpoints.Store(tmp_path)
  store.save(1, make_state(1))
  store.wait()
  write = integrity.write

  def no_space(path, about):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(integrity, "write", no_space)
  store.save(2, make_state(2))
  with pytest.raises(OSError, match=rf"{tmp_path}/2 was not written: the disk is full.*MB is free"):
    store.wait()
  assert not (tmp_path / "2").exists()
  monkeypatch.setattr(integrity, "write", write)
  assert store.restore(make_state()).step == 1
  assert store.save(3, make_state(3)), "once there is space, the same store goes on"
  same_bits(store.restore(make_state()).state, make_state(3))
  store.close()


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
  store = checkpoints.Store(tmp_path)
  usage = shutil.disk_usage(tmp_path)._replace(free=100)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(OSError, match="the disk is full, it needs about"):
    store.save(1, make_state())
  assert store.steps() == []


def test_read_only_and_a_file_in_the_way(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="cannot make the checkpoint directory"):
    checkpoints.Store(tmp_path / "file" / "store")
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  with pytest.raises(OSError, match="is read-only"):
    checkpoints.Store(tmp_path)


def run(source, *arguments, **options):
  command = [sys.executable, "-c", source, *map(str, arguments)]
  environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
  )


LIMITED = """
import os, resource, sys
import jax, numpy as np
from larpo_jax import checkpoints
store = checkpoints.Store(sys.argv[1])
state = {"x": np.random.default_rng(0).normal(size=300_000)}
store.save(1, {"x": state["x"][:1000]}); store.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
  store.save(2, state); store.wait()
except OSError as error:
  print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.restore({"x": state["x"][:1000]}).step == 1
assert sorted(os.listdir(sys.argv[1])) == [".saving", "1"], os.listdir(sys.argv[1])
assert not os.listdir(os.path.join(sys.argv[1], ".saving"))
store.save(2, {"x": state["x"][:1000]}); store.wait()
print(store.steps()); os._exit(0)
"""


def test_file_size_limit(tmp_path):
  out, err = run(LIMITED, tmp_path).communicate(timeout=60)
  assert f"{tmp_path}/2 was not written: the disk is full" in out, out + err
  assert "[1, 2]" in out, out + err


# Killed at any moment: children forked from one process, as importing jax takes longer than a save.

SAVING = """
import itertools, os, signal, sys, time
import numpy as np
from larpo_jax import checkpoints

def child(out):
  store = checkpoints.Store(sys.argv[1], keep=2)
  like = {"x": np.zeros(500_000, np.int64)}
  found = store.restore(like)
  start = 0 if found is None else found.step
  if found is not None:
    assert (found.state["x"] == np.arange(500_000) * start).all(), "bad restore"
    assert found.data == {"next": start} and not found.rejected, found.rejected
  os.write(out, f"ready {start}\\n".encode())
  for step in itertools.count(start + 1):
    store.save(step, {"x": np.arange(500_000) * step}, {"next": step})
    if step % 2:
      store.wait()
    os.write(out, f"{max(store.steps(), default=0)}\\n".encode())

generator = np.random.default_rng(int(sys.argv[2]))
committed = 0
for kill in range(int(sys.argv[3])):
  read, write = os.pipe()
  pid = os.fork()
  if not pid:
    os.close(read)
    try:
      child(write)
    finally:
      os._exit(1)
  os.close(write)
  lines = os.fdopen(read)
  first = lines.readline().split()
  assert first[:1] == ["ready"], "no restore"
  assert int(first[1]) >= committed, f"step {committed} was lost: {first}"
  time.sleep(generator.uniform(0.0, 0.5))
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  whole = [line for line in lines.read().split("\\n")[:-1]]
  committed = max([int(first[1]), *map(int, whole)])
print("committed", committed, flush=True)
"""


def test_kills_in_the_middle_of_saves_cost_no_committed_step(tmp_path, seed):
  kills = 12
  out, err = run(SAVING, tmp_path, seed, kills).communicate(timeout=120)
  assert "committed" in out, err[-3000:]
  committed = int(out.split()[-1])
  assert committed > 0
  store = checkpoints.Store(tmp_path)
  found = store.restore({"x": np.zeros(500_000, np.int64)})
  assert found.step >= committed
  assert not found.rejected
  store.close()
  assert sorted(path.name for path in tmp_path.iterdir() if not path.name.isdigit()) == [".saving"]
  assert not list((tmp_path / ".saving").iterdir())


# Two processes.

TWO = """
import os, sys
import jax
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from larpo_jax import checkpoints
mesh = Mesh(np.array(jax.devices()), ("data",))
split = NamedSharding(mesh, PartitionSpec("data"))
whole = np.arange(8.0)
def make(factor):
  return {"x": jax.make_array_from_callback((8,), split, lambda i: (whole * factor)[i])}
store = checkpoints.Store(sys.argv[1], keep=2)
for step in (1, 2, 3):
  store.save(step, make(step), {"next": step})
store.wait()
assert store.steps() == [2, 3], store.steps()
if jax.process_index() == 0:
  path = os.path.join(sys.argv[1], "3", "meta", "metadata")
  open(path, "a").write(" ")
found = store.restore(make(0))
assert found.step == 2 and found.data == {"next": 2}
for shard in found.state["x"].addressable_shards:
  np.testing.assert_array_equal(shard.data, whole[shard.index] * 2)
store.save(3, make(5)); store.close()
often = checkpoints.Store(sys.argv[1] + "-often", keep=2)
for step in range(24):  # one process must not look while the other renames
  often.save(step, make(step))
often.wait(); often.close()
print("done", flush=True)
"""


def test_two_processes(tmp_path, free_port):
  address = f"localhost:{free_port}"
  processes = [run(TWO, tmp_path, address, index) for index in range(2)]
  for process in processes:
    out, err = process.communicate(timeout=60)
    assert "done" in out, err[-2000:]
    assert process.returncode == 0
  # One process reads what two wrote.
  store = checkpoints.Store(tmp_path)
  found = store.restore({"x": jax.ShapeDtypeStruct((8,), jnp.float32)})
  store.close()
  np.testing.assert_array_equal(found.state["x"], np.arange(8.0) * 5)
  assert Path(tmp_path / "3.corrupt").is_dir()
  assert json.loads((tmp_path / "3" / "meta" / "metadata").read_text())["processes"] == 2


@pytest.fixture
def free_port():
  with socket.socket() as opened:
    opened.bind(("localhost", 0))
    return opened.getsockname()[1]
