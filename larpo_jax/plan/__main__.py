"""The command of a plan: see larpo_jax/plan/__init__.py."""

import sys

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from larpo_jax import config as configs
from larpo_jax import hardware, plan
from larpo_jax.plan import tables


def _define() -> None:
  config_flags.DEFINE_config_file("config", help_string="FILE.py[:ARGUMENT]")
  chips = ", ".join(hardware.CHIPS)
  flags.DEFINE_string("chip", "", f"One of {chips}; '': what is here.")
  flags.DEFINE_integer("devices", 0, "How many; 0: as many as are here.")
  flags.DEFINE_list("tokens", [], "P,R: instead of the data's lengths.")
  flags.DEFINE_float("share", 0.0, "Of the rate that is reached; 0: what is known.")
  flags.mark_flag_as_required("config")


def main(argv: list[str]) -> int:
  """A user's mistake ends in one sentence."""
  if len(argv) > 1:
    raise app.UsageError(f"stray words: {' '.join(argv[1:])}; an override is --config.KEY=VALUE")
  given = flags.FLAGS
  try:
    tokens = tuple(int(word) for word in given.tokens) or None
    if tokens is not None and (len(tokens) != 2 or min(tokens) < 1):
      raise ValueError(f"--tokens={','.join(given.tokens)} must be two lengths, such as 512,512")
    machine = hardware.machine(given.chip, given.devices, given.share)
    tables.show(plan.job_of(configs.validate(given.config), machine, tokens), Console())
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  _define()
  app.run(main, flags_parser=configs.parse_flags)
