"""Whether a round's novelty knows how often a response was sampled: its correlation with n^-1/2.

    python scripts/novelty_against_counts.py runs/copo/*coin_flips*

Reads what runs with rounds.novelty left: the importance of each response in the lists of their last
round, and how often all rounds sampled it to its prompt. A line a run, and the mean: Pearson's
and Spearman's coefficient over responses.
"""

import collections
import pathlib
import sys

import numpy as np
from scipy import stats

from larpo_jax import workdir


def correlations(run: pathlib.Path) -> tuple[float, float]:
  """Pearson's and Spearman's; ValueError where a run has no novelty in its lists."""
  rounds = sorted((run / "rounds").iterdir(), key=lambda path: int(path.name))
  count: collections.Counter[tuple[str, str]] = collections.Counter()
  for each in rounds:
    for row in workdir.read_jsonl(each / "candidates.jsonl"):
      own = [t for t, who in zip(row["responses"], row["sources"]) if who in ("greedy", "self")]
      count.update((row["prompt"], text) for text in own)
  novelty, rarity = [], []
  for row in workdir.read_jsonl(rounds[-1] / "lists.jsonl"):
    if "importance" not in row:
      raise ValueError(f"{run} has no importance in its lists: it ran without rounds.novelty")
    for text, importance in zip(row["responses"], row["importance"]):
      if importance > 0 and count[row["prompt"], text]:  # what is explored, and was sampled
        novelty.append(importance)
        rarity.append(count[row["prompt"], text] ** -0.5)
  return stats.pearsonr(novelty, rarity).statistic, stats.spearmanr(novelty, rarity).statistic


if __name__ == "__main__":
  found = []
  for name in sys.argv[1:]:
    found.append(correlations(pathlib.Path(name)))
    print("pearson {:.2f}, spearman {:.2f}".format(*found[-1]), name)
  print("mean: pearson {:.2f}, spearman {:.2f}".format(*np.mean(found, axis=0)))
