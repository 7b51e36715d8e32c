"""A session of the quickstart's smoke with rounds, in a workdir of one's own."""

import dataclasses
import importlib.util
import pathlib

from larpo_jax import config as config_lib
from larpo_jax import preemption, session, writers

ROOT = pathlib.Path(__file__).parent.parent
PROMPTS, ROUNDS = 6, 3


class StopsAt:
  """A guard that is asked to stop at its n-th poll."""

  def __init__(self, poll):
    self.left = poll

  def poll(self, step):
    self.left -= 1
    return self.left <= 0


def start(directory):
  """A session of the quickstart's smoke, and its first parameters."""
  path = ROOT / "experiments" / "quickstart.py"
  spec = importlib.util.spec_from_file_location("quickstart", path)
  page = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(page)
  config = page.get_config("smoke")
  config.rounds.update(count=ROUNDS, prompts=PROMPTS, batch_size=4)  # the second is a short one
  config.mesh = dict(data=1, fsdp=1, tensor=-1)  # which leaves batches of any size
  config.reference.cache_dir = str(directory)
  checked = config_lib.validate(config)
  return session.start(checked, directory, writers.Writer(directory), preemption.Guard())


def placed(found, workdir, **settings):
  """A session in a workdir of its own, with settings of the rounds."""
  config = found.config.copy_and_resolve_references().unlock()
  config.rounds.update(settings)
  changes = dict(config=config_lib.validate(config), guard=StopsAt(10**9))
  return dataclasses.replace(found, workdir=workdir, writer=writers.Writer(workdir), **changes)


def lists(data):
  """The rows of tokenised data as plain values, in order."""
  return [
    (row.prompt.tolist(), [ids.tolist() for ids in row.responses], row.labels)
    for row in (data[index] for index in range(len(data)))
  ]
