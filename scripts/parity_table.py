"""Measures how far every loss is from TRL's, and writes the table of the documentation.

    python scripts/parity_table.py --out docs/parity.md

Runs what `tests/trl_parity_test.py` runs: TRL's own code and ours on the same log-probs, and TRL's
own trainers and our step on the same checkpoint and rows. Needs the `parity` extra.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import logging
import os
import pathlib
import platform
import sys
import tempfile
import textwrap
import warnings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401  the devices and the precision of the tests, before jax starts
import datasets  # noqa: E402
import parity  # noqa: E402
from trl_cases import CASES, Case  # noqa: E402

PACKAGES = ("trl", "transformers", "torch", "jax", "optax", "flax")
HEAD = (
  "TRL: trainer, settings",
  "larpo_jax",
  "loss",
  "gradient",
  "loss, 0 steps",
  "1 step",
  "2 steps",
  "gradient norm",
  "worst metric",
)
TEXT = """# Parity with TRL

Relative errors against TRL's own code, run in the same process in float32. The bar is 1e-5, and
`tests/trl_parity_test.py` holds every column to it, with fresh random numbers in every run.

* **loss, gradient**: TRL's loss function and our kernel on the same random log-probs of several
  sizes, the worst of them; the gradient's largest error relative to its largest entry.
* **0, 1, 2 steps**: the loss at the start and after AdamW steps of TRL's own trainer and of ours,
  on the same tiny Llama checkpoint (2 layers, width 32), 8 rows in one batch, learning rate 1e-3
  ("discopop" and "forward_kl", whose slopes amplify rounding: 1e-4).
  The gradient norm is the worst of the three.
* **worst metric**: of all that both log, in either comparison. A reward is beta times a difference
  of sums, so its error is relative to beta times 10 nats where it is smaller; so is KTO's `kl`.

Where the two differ, and what the rows avoid or leave out:

* AdamW has beta 2 = 1 - 2^-10 on both sides. With 0.999 optax's first steps are 6.6e-6 shorter than
  PyTorch's, because 1 - 0.999 in float32 is 1.3e-5 too small; that is no matter of the loss.
* AdamW has epsilon 1e-4 on both sides. Where a gradient is a sum that cancels, what is left is
  rounding, which 1e-8 makes a whole step: then one draw of `sppo_hard` is 2e-5 apart in the
  gradient norm after two steps, 3e-6 with 1e-6, and 4e-7 with 1e-4.
* TRL's likelihood terms of CPO and ORPO are one mean over the tokens of the batch, ORPO's over
  those of the prompt too; `reference_free.cpo` and `.orpo` take the mean over prompts, and of the
  response. Their rows have responses of one length, ORPO's prompts one token. "CPO, ragged" has any
  lengths, and its likelihood is `pointwise.sft_tokens`, a mean over tokens.
* TRL's `entropy` is a mean over the tokens of the batch, ours over prompts: rows have as many
  tokens each, but for "KTO", where it is left out.
* `sigmoid_norm`: our rewards are those per token that the loss compares, TRL's those of sums: left
  out.
* SimPO, AlphaPO, ORPO: TRL's `logps/chosen` is per token, our `logps/chosen_per_token`; its
  `logps/rejected` is left out.
* `num_tokens` is another number: ours counts the responses of a batch, TRL's all tokens so far.
"""
ALONE = """* Logged by TRL alone: {}; KTO's `rewards/margins`, the `kl` of 0 of "apo_zero_unpaired",
and the rewards and `logps/rejected` of "sft"."""


def main() -> None:
  """Measures case by case, and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "parity.md")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  logging.disable(logging.WARNING)
  warnings.simplefilter("ignore")
  datasets.disable_progress_bars()
  rows, theirs, ours = [], set(), {"epoch", "learning_rate", *parity.COUNTERS}
  with tempfile.TemporaryDirectory() as directory:
    setting = parity.Setting(directory, arguments.seed)
    for name, case in CASES.items():
      rows.append(row(name, case, setting, arguments.seed))
      print(" | ".join(rows[-1]), flush=True)
      expected, found, _ = setting.both(case)
      theirs |= set(expected[0])
      ours |= set(found[0])
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
  command = f"python scripts/parity_table.py --seed {arguments.seed}"
  measured = (
    f"Measured {datetime.date.today()} with `{command}` on {platform.machine()} CPU, Python "
    f"{platform.python_version()}, {versions}."
  )
  wrap = functools.partial(textwrap.fill, width=100, break_on_hyphens=False)
  alone = ALONE.format(", ".join(f"`{name}`" for name in sorted(theirs - ours)))
  lines = [
    TEXT + wrap(alone, subsequent_indent="  ") + "\n",
    wrap(measured) + "\n",
    *(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *rows)),
  ]
  arguments.out.write_text("\n".join(lines) + "\n")


def row(name: str, case: Case, setting: parity.Setting, seed: int) -> list[str]:
  """The cells of a case."""
  alone = [parity.on_logprobs(case, seed, spread) for spread in case.spreads]
  expected, found, _ = setting.both(case)
  steps = [parity.errors(case, o, w) for w, o in zip(expected, found, strict=True)]
  worst = {n: max(step[n] for step in (*steps, *alone) if n in step) for n in steps[0]}
  norm = worst.pop("grad_norm")
  del worst["loss"]
  metric = max(worst, key=worst.get)
  numbers = [max(x[n] for x in alone) for n in ("loss", "gradient")]
  numbers += [step["loss"] for step in steps] + [norm]
  ours = case.spec if isinstance(case.spec, tuple) else (case.spec,)
  settings = ", ".join(f"{key}={value!r}" for key, value in case.settings.items())
  return [
    f"**{name}**: {case.trainer}, `{settings or 'defaults'}`",
    "`" + " + ".join(map(shown, ours)) + "`",
    *(f"{x:.0e}" if x else "0" for x in numbers),
    f"{worst[metric]:.0e} `{metric}`",
  ]


def shown(node: dict) -> str:
  """`0.5 wrappers.robust(epsilon=0.1, pairwise.dpo(beta=0.1))`."""
  weight = f"{node['weight']:g} " if "weight" in node else ""
  rest = {k: v for k, v in node.items() if k not in ("name", "weight")}
  inner = [shown(rest.pop("kernel"))] if "kernel" in rest else []
  values = [f"{key}={value}" for key, value in rest.items()]
  return f"{weight}{node['name']}({', '.join(values + inner)})"


if __name__ == "__main__":
  main()
