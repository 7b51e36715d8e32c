"""Doing once what several processes are about to do: the first does it, the others wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import os
import time
import warnings

import filelock

PATIENCE = 600.0  # seconds without news from who has the lock
PAUSE = 0.5  # seconds between two tries


@contextlib.contextmanager
def alone(
  path: str | os.PathLike, news: Callable[[], object], wait: Callable[[float], object]
) -> Iterator[None]:
  """Holds the lock of that path while the block runs.

  The block looks again whether anything is left to do: who had the lock may have ended just before.
  The lock is the kernel's (flock): it ends with the process, however that ends. Who waits says so
  once, and calls wait(seconds), which may raise, between tries. Where a file system has no locks,
  or news has given the same for PATIENCE seconds because the holder hangs or is suspended, the
  block runs without: it must be such that two may run it at once.
  """
  lock = filelock.FileLock(path)
  last, since, said = news(), time.monotonic(), False
  while True:
    try:
      lock.acquire(blocking=False)
      break
    except filelock.Timeout:
      pass
    except (OSError, NotImplementedError) as error:
      warnings.warn(f"{path} cannot be locked ({error}); going on without", stacklevel=3)
      break
    if not said:
      print(f"waiting for another run that computes the same ({path})", flush=True)
      said = True
    wait(PAUSE)
    if (latest := news()) != last:
      last, since = latest, time.monotonic()
    elif time.monotonic() - since > PATIENCE:
      warnings.warn(f"no news from who holds {path}; going on without", stacklevel=3)
      break
  try:
    yield
  finally:
    lock.release()
