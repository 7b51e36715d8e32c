"""Small data sets of rows that bring more than labels."""

import json

import numpy as np

from larpo_jax.data import batching, dataset

LISTS = dict(name="readers.lists", prompt="p", responses="r", scores="s")
BESIDE = LISTS | dict(second_scores="second", importance="counts")
UNPAIRED = dict(name="readers.unpaired", importance="counts")
SKIP = ("all_tied", "equal", "one_candidate")


def built(directory, tokenizer, rows, reader=BESIDE, **options):
  """The rows, written to directory and read back through a reader."""
  path = directory / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  sizes = dict(max_prompt=64, max_response=64, cache=directory / "cache", skip=SKIP)
  return dataset.build(path, reader=reader, tokenizer=tokenizer, **sizes | options)


def draw(rng, count, width=7):
  """Lists of few letters, so that many are equal; the other numbers tell the responses apart."""
  rows = []
  for index in range(count):
    K = int(rng.integers(2, width + 1))
    texts = ["x" + "".join(rng.choice([*"ab"], rng.integers(1, 4))) for _ in range(K)]
    places = [float(x) for x in rng.permutation(1000)[:K] + 1]
    scores = [float(x) for x in rng.integers(0, 4, K)]
    row = dict(p=f"{index}\n", r=texts, s=scores, second=places, counts=[-x for x in places])
    rows.append(row)
  return rows


def votes(rng, count):
  """Unpaired rows, several in a row of the same prompt."""
  prompts = np.sort(rng.integers(0, count // 2, count))
  text = lambda: "".join(rng.choice([*"abc "], rng.integers(1, 9))) + "."  # noqa: E731
  return [
    dict(prompt=f"{p}\n", completion=text(), label=bool(rng.random() < 0.5), counts=float(i + 1))
    for i, p in enumerate(prompts)
  ]


def feed(data, **options):
  return batching.batches(data, **dict(batch_size=4, shuffle=False, epochs=1) | options)
