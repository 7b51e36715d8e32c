"""What runs of a sweep measured beside the number that they are compared by: a Markdown table.

    python scripts/measured_alongside.py runs/objectives runs/flips

One table a sweep, one row an arm, means over seeds. After training: gold reward of greedy answers
and of samples, the proxy's of samples, the share of samples that beat the start's, KL to the start
with the standard error of a run's estimate over prompts, its k3 estimate, the length of answers.
While it trained, at the last step: how much likelier than in the reference the chosen response is
(nats) and the share of pairs that are ranked right; over all steps the mean norm of the gradient.
Of the rounds: the share of a list's responses that differ and that of lists with one reward. What
was generated and trained on, in tokens, and seconds of wall-clock, beside whatever else ran.
"""

from collections.abc import Sequence
import pathlib
import statistics
import sys

from larpo_jax import writers
from larpo_jax.report import collect
from larpo_jax.report.collect import Run

AFTER = {
  "gold, greedy": "gold/reward",
  "gold, samples": "sampled/gold/reward",
  "proxy, samples": "sampled/proxy/reward",
  "win rate": "sampled/win_rate",
  "KL": "kl",
  "its s.e.": "kl_stderr",
  "k3": "kl_k3",
  "length": "length",
}
STEPS = {"rho chosen": "displacement/chosen", "ranked right": "rewards/accuracies"}
ROUNDS = {"unique": "candidates/unique", "tied": "candidates/all_tied"}
COST = {"generated": "generated_tokens", "trained": "trained_tokens", "seconds": "seconds"}


def numbers(run: Run) -> dict[str, float]:
  """Every column of a run that it has."""
  rows = list(writers.read(run.directory))
  steps = [row for row in rows if row["stage"].startswith(("round_", "align")) and "loss" in row]
  rounds = [row for row in rows if row["stage"] == "rounds"]
  found = {title: run.after[name] for title, name in AFTER.items() if name in run.after}
  if steps:
    found |= {title: steps[-1][name] for title, name in STEPS.items() if name in steps[-1]}
    found["gradient"] = statistics.mean(row["grad_norm"] for row in steps)
  for title, name in ROUNDS.items():
    if any(name in row for row in rounds):
      found[title] = statistics.mean(row[name] for row in rounds if name in row)
  return found | {title: run.cost[name] for title, name in COST.items() if name in run.cost}


def table(runs: Sequence[Run]) -> list[str]:
  """The lines of a sweep's table."""
  by_arm: dict[str, list[dict[str, float]]] = {}
  for run in runs:
    by_arm.setdefault(run.arm, []).append(numbers(run))
  order = [*AFTER, *STEPS, "gradient", *ROUNDS, *COST]
  titles = [t for t in order if any(t in found for each in by_arm.values() for found in each)]
  lines = ["| arm | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
  for arm, found in by_arm.items():
    cells = []
    for title in titles:
      values = [each[title] for each in found if title in each]
      mean = statistics.mean(values) if values else None
      cells.append("" if mean is None else f"{mean:,.0f}" if title in COST else f"{mean:.3g}")
    lines.append(f"| {arm} | " + " | ".join(cells) + " |")
  return lines


if __name__ == "__main__":
  for name in sys.argv[1:]:
    finished, _ = collect.runs(name)
    seeds = len({run.seed for run in finished})
    print(f"## {pathlib.Path(name).name}: {len(finished)} runs, {seeds} seeds\n")
    print("\n".join(table(finished)) + "\n")
