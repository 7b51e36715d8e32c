"""Stopping on a signal with everything saved: a flag that every loop polls."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

from absl import logging
import jax
from jax.experimental import multihost_utils

REQUEUE = 75  # exit code (EX_TEMPFAIL): stopped with everything saved, run the same command again
IN_USE = 76  # exit code: another live run has the workdir
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Guard:
  """Takes SIGTERM and SIGUSR1 while its block runs; poll says whether it is time to save and stop.

  With one process its own handler sets a flag. With several, jax's preemption service makes every
  process stop at the same poll, so every process must poll equally often. The first signal counts,
  later ones are harmless. Poll in every loop, at most about ten seconds apart.
  """

  def __init__(self) -> None:
    self.stopping = False
    self._signalled = False
    self._polls = 0
    self._distributed = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> Guard:
    """Installs the handlers; only the main thread may."""
    # Not process_count(), which starts the devices: a signal meanwhile would end the process.
    self._distributed = jax.distributed.is_initialized()
    handler = self._forward if self._distributed else self._note
    for number in (signal.SIGUSR1,) if self._distributed else SIGNALS:
      self._before[number] = signal.signal(number, handler)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Puts back the handlers that were there."""
    for number, handler in self._before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    self._before.clear()

  def poll(self, step: int) -> bool:
    """Whether to save at this step and stop; once true, always true."""
    self._polls += 1
    if self._distributed:
      # Its own count: steps begin again with every stage, and the service wants a rising number.
      stop = multihost_utils.reached_preemption_sync_point(self._polls)
    else:
      stop = self._signalled
    if stop and not self.stopping:
      logging.warning("asked to stop: saving at step %d", step)
    self.stopping = self.stopping or stop
    return self.stopping

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._signalled = True

  def _forward(self, number: int, frame: FrameType | None) -> None:
    """The service of jax listens to SIGTERM only."""
    os.kill(os.getpid(), signal.SIGTERM)
