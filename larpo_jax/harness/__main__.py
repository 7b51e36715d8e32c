r"""`lm_eval`'s own command, with this library's models as "larpo_jax".

    pip install 'larpo_jax[harness]'
    python -m larpo_jax.harness run --model larpo_jax --model_args pretrained=runs/mine/export \
      --tasks arc_easy --batch_size 16

What stands after `larpo_jax.harness` is for `lm_eval`: `python -m larpo_jax.harness run --help`.
`larpo_jax.harness.model.LarpoLM` says what may stand in --model_args.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from larpo_jax import compiler


def main() -> int:
  """Runs the command; a user's mistake ends in one sentence and exit code 1."""
  if importlib.util.find_spec("lm_eval") is None:
    print("larpo_jax: error: lm_eval is missing; pip install 'larpo_jax[harness]'", file=sys.stderr)
    return 1
  from lm_eval.__main__ import cli_evaluate

  from larpo_jax.harness import model  # noqa: F401  registers it

  try:
    cli_evaluate()
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  compiler.set_flags(os.environ)
  sys.exit(main())
