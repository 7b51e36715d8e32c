"""Checkpoints that are whole or are not loaded: orbax, and a digest of every file it wrote.

A save is written and digested in `.saving`, then renamed: a step that is there was whole once.
Orbax restores an array with a flipped bit without a word, so every restore compares the digests.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import errno
import json
import os
from pathlib import Path
import shutil
import threading
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

import larpo_jax
from larpo_jax import workdir
from larpo_jax.checkpoints import integrity, structure
from larpo_jax.config.redaction import differences

_SAVING = ".saving"  # what is in it is not whole yet


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint: what was saved, and what was wrong with the newer ones that were passed over."""

  step: int
  state: Any
  data: Any
  meta: dict[str, Any]
  rejected: tuple[str, ...] = ()


class Store:
  """The checkpoints of one training stage, in one directory of one file system for all processes.

  Every process makes the same calls in the same order. save returns once the arrays are copied
  off the devices; an error of the writing shows at the next save, check, wait or close.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 3, verify: str = "full"):
    """keep: how many of the newest to keep. verify: "full", "quick" (sizes, small files) or "off".

    Raises ValueError on a wrong argument, OSError where the directory cannot be written.
    """
    if keep < 1:
      raise ValueError(f"keep={keep} would delete every checkpoint: give at least 1")
    if verify not in integrity.LEVELS:
      raise ValueError(f"verify={verify!r} is none of {', '.join(integrity.LEVELS)}")
    self.directory = Path(os.path.abspath(directory))
    self._keep, self._verify = keep, verify
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    if jax.process_index() == 0:
      _writable(self.directory)
      _clean(self.directory)
    _barrier(f"store {self.directory}")
    self._manager = _manager(self.directory / _SAVING)
    self._known = set(self.steps())

  def save(
    self,
    step: int,
    state: Any,
    data: Any = None,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
  ) -> bool:
    """Writes state (a pytree of arrays), data and meta (JSON); False if that step is there already.

    force writes it anew. Raises OSError that names the path, what is needed and what is free where
    the disk is full or read-only; the older steps stay as they are.
    """
    self.check(wait=True)
    _barrier(f"save {step} {self.directory}")  # process 0 has renamed what orbax looks for below
    flat = structure.flatten(state)
    path = self.directory / str(step)
    if step in self._known:
      if not force:
        return False
      if jax.process_index() == 0:
        _remove(path)
      _barrier(f"anew {path}")
    size = sum(leaf.nbytes for leaf in flat.values())
    if jax.process_count() == 1 and shutil.disk_usage(self.directory).free < size:
      raise workdir.unwritten(OSError(errno.ENOSPC, "the disk is too full"), path, size)
    arguments = ocp.args.Composite(
      # Orbax refuses arrays without elements; restore makes them up.
      state=ocp.args.StandardSave({key: leaf for key, leaf in flat.items() if leaf.size}),
      data=ocp.args.JsonSave({"data": data}),
      meta=ocp.args.JsonSave({**_environment(), "step": step, **(meta or {})}),
    )
    try:
      self._manager.reload()  # it would take a step that was saved and renamed for one it still has
      self._manager.save(step, args=arguments, force=True)
    except Exception as error:
      self._give_up(step)
      self._error = workdir.unwritten(error, path, size)
      self.check()
    arrays = structure.describe(flat)
    self._thread = threading.Thread(target=self._seal, args=(step, arrays, size), name="seal")
    self._thread.start()
    self._known.add(step)
    return True

  def restore(self, like: Any, *, expect: Mapping[str, Any] | None = None) -> Restored | None:
    """The latest good checkpoint in the structure, shapes, dtypes and shardings of like, or None.

    like's leaves are arrays or ShapeDtypeStructs. A damaged step is renamed `.corrupt` and the one
    before is tried. Raises ValueError with the difference where the checkpoint holds other arrays
    or dtypes than like, or another value of a key of meta than expect; and where there were whole
    checkpoints and all are damaged.
    """
    self.wait()
    flat = structure.flatten(like)
    step, rejected = self._agree()
    self._known = set(self.steps())
    if step is None:
      return None
    path = self.directory / str(step)
    _same(path, integrity.read(path)["about"]["arrays"], structure.describe(flat))
    abstract = {key: structure.abstract(leaf) for key, leaf in flat.items() if leaf.size}
    arguments = ocp.args.Composite(
      meta=ocp.args.JsonRestore(),
      data=ocp.args.JsonRestore(),
      state=ocp.args.StandardRestore(abstract),
    )
    with _manager(self.directory) as manager:
      restored = manager.restore(step, args=arguments)
    wanted = json.loads(json.dumps(dict(expect or {})))  # as meta was: tuples are lists
    _same(path, {key: restored.meta.get(key) for key in wanted}, wanted)
    empty = {key: structure.empty(leaf) for key, leaf in flat.items() if not leaf.size}
    leaves = [{**restored.state, **empty}[key] for key in flat]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Restored(step, state, restored.data["data"], restored.meta, rejected)

  def steps(self) -> list[int]:
    """The steps that there are, in order; whether they are damaged only restore finds out."""
    return _steps(self.directory)

  def check(self, *, wait: bool = False) -> None:
    """Raises what went wrong with the save under way, if anything has; wait: once it is over."""
    if self._thread is not None and (wait or not self._thread.is_alive()):
      self._thread.join()
      self._thread = None
    if self._thread is None and self._error is not None:
      error, self._error = self._error, None
      if jax.process_count() == 1:
        self._manager = _manager(self.directory / _SAVING)  # the old one would say it again
        self._known = set(self.steps())
      raise error

  def wait(self) -> None:
    """Returns when the last save can be restored, or raises what went wrong with it."""
    self.check(wait=True)
    _barrier(f"wait {self.directory}")

  def close(self) -> None:
    """Waits for this process's part of the last save and lets go of the threads."""
    try:
      self.check(wait=True)  # no barrier: where one process fails, the others may not be here
    finally:
      self._manager.close()

  def _seal(self, step: int, arrays: dict[str, str], size: int) -> None:
    """In a thread: waits for orbax, digests, renames, and then deletes what is too old."""
    path, saving = self.directory / str(step), self.directory / _SAVING / str(step)
    try:
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        integrity.write(saving, {"step": step, "arrays": arrays})
        saving.rename(path)
        for old in self.steps()[: -self._keep]:
          _remove(self.directory / str(old))
    except BaseException as error:
      self._give_up(step)
      self._error = workdir.unwritten(error, path, size)

  def _give_up(self, step: int) -> None:
    """Takes away what a failed save left, so that its space is free again."""
    if jax.process_index() == 0:
      shutil.rmtree(self.directory / _SAVING / str(step), ignore_errors=True)

  def _agree(self) -> tuple[int | None, tuple[str, ...]]:
    """What process 0 found to be the latest good step; the others get the step only."""
    step, error = -1, None
    rejected: tuple[str, ...] = ()
    if jax.process_index() == 0:
      try:
        step, rejected = self._latest_good()
      except ValueError as caught:
        step, error = -2, caught
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == -2:
      raise error or ValueError(f"no good checkpoint in {self.directory}: process 0 says why")
    return (None if step < 0 else step), rejected

  def _latest_good(self) -> tuple[int, tuple[str, ...]]:
    rejected: list[str] = []
    for step in reversed(_steps(self.directory)):
      path = self.directory / str(step)
      problem = integrity.problem(path, self._verify) or _misplaced(path)
      if problem is None:
        return step, tuple(rejected)
      rejected.append(f"checkpoint {path} is damaged: {problem}; kept as {_set_aside(path).name}")
      logging.warning("%s", rejected[-1])
    if any(self.directory.glob("*.corrupt*")):
      raise ValueError(
        f"no good checkpoint is left in {self.directory} ({'; '.join(rejected) or '*.corrupt'}); "
        "delete the directory to start from nothing"
      )
    return -1, tuple(rejected)


def _steps(directory: Path) -> list[int]:
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _misplaced(path: Path) -> str | None:
  step = integrity.read(path)["about"]["step"]
  return None if step == int(path.name) else f"it holds step {step}"


def _set_aside(path: Path) -> Path:
  count, target = 0, path.with_name(f"{path.name}.corrupt")
  while target.exists():
    count += 1
    target = path.with_name(f"{path.name}.corrupt{count}")
  try:
    path.rename(target)
  except OSError:
    return path  # read-only: it is passed over all the same
  return target


def _remove(path: Path) -> None:
  """Renames first: a kill in the middle must not leave a step with half of its files."""
  doomed = path.with_name(f"{path.name}.deleting")
  shutil.rmtree(doomed, ignore_errors=True)
  path.rename(doomed)
  shutil.rmtree(doomed, ignore_errors=True)


def _clean(directory: Path) -> None:
  """Deletes what a kill left: saves that never finished, deletions that did not."""
  shutil.rmtree(directory / _SAVING, ignore_errors=True)
  for path in directory.glob("*.deleting"):
    shutil.rmtree(path, ignore_errors=True)
  (directory / _SAVING).mkdir()


def _writable(directory: Path) -> None:
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"cannot make the checkpoint directory {directory}: {error.strerror}") from error
  if not os.access(directory, os.W_OK):
    raise OSError(f"the checkpoint directory {directory} is read-only; give a workdir that is not")


def _manager(directory: Path) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      create=False,
      enable_async_checkpointing=True,
      atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
    ),
  )


def _same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
  found = differences(there, here)
  if found:
    raise ValueError(
      f"checkpoint {path} is of another model, optimizer or run ({found}); "
      "give the config that it was made with, or another workdir"
    )


def _environment() -> dict[str, Any]:
  return {
    "larpo_jax": larpo_jax.__version__,
    "jax": jax.__version__,
    "processes": jax.process_count(),
    "devices": jax.device_count(),
  }


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
