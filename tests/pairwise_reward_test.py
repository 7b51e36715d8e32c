"""Scores of a preference model: its verdicts on every two answers in both orders, averaged."""

import itertools
import json

import jax
import numpy as np
import pytest
import tiny_checkpoint

from larpo_jax.data import batching, dataset, readers
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.models import huggingface
from larpo_jax.rewards import models
from larpo_jax.scorers import tokens

QUICK = {"xla_backend_optimization_level": 0}
LIMIT = 96


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """Larger weights than usual, so that what it says depends on what it reads."""
  return tiny_checkpoint.make(tmp_path_factory.mktemp("checkpoint"), initializer_range=0.3)


def texts(seed, count):
  draw = np.random.default_rng(seed)
  return [f"{n} {'abcde'[: draw.integers(1, 6)]}" for n in range(count)]


def scores(path, prompts, responses, **how):
  how = dict(chat=True, max_prompt=LIMIT) | how
  return models.pairwise(prompts, responses, path=str(path), **how)


@pytest.mark.parametrize("chat", [True, False])
def test_it_asks_both_orders_of_every_two(chat, checkpoint, tmp_path, seed):
  """Longhand, by the log-probs that training uses on rows that a data set holds."""
  answers, prompts = [texts(seed, 3), texts(seed + 1, 3)], ["why", "what {is} a long question"]
  model, params, _ = huggingface.load(checkpoint)
  score = jax.jit(tokens.causal, static_argnums=0, compiler_options=QUICK)
  wanted = np.zeros((2, 3))
  for b, k in np.ndindex(2, 3):
    for other in set(range(3)) - {k}:
      for first, second, sign in ((k, other, 1), (other, k, -1)):
        given = dict(prompt=prompts[b], first=answers[b][first], second=answers[b][second])
        row = dict(text=readers.VERDICT.format(**given), letters=["A", "B"], scores=[1, 0])
        (tmp_path / "row.jsonl").write_text(json.dumps(row))
        data = dataset.build(
          tmp_path / "row.jsonl", tokenizer=tokenizers.load(checkpoint), cache=tmp_path / "cache",
          reader=dict(name="readers.lists", prompt="text", responses="letters", scores="scores"),
          max_prompt=LIMIT, max_response=2, chat=chat,
        )  # fmt: skip
        batch = next(batching.batches(data, batch_size=1, shuffle=False, epochs=1))
        a, b_ = np.asarray(score(model, params, batch).token)[0, :, 0]
        wanted[b, k] += sign * (a - b_) / 4
  found = scores(checkpoint, prompts, answers, chat=chat)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, wanted, 1e-3, 1e-4)
  assert np.ptp(found) > 0.01


def test_scores_are_of_the_list(checkpoint, seed):
  answers = texts(seed, 5)
  found = scores(checkpoint, ["q"], [answers])[0]
  np.testing.assert_allclose(found.sum(), 0, atol=1e-4)
  order = np.random.default_rng(seed).permutation(5)
  moved = scores(checkpoint, ["q"], [[answers[i] for i in order]], batch_size=7)[0]
  np.testing.assert_allclose(moved, found[order], 1e-3, 1e-4)
  # The mean over the others is that of lists of two.
  pairs = np.zeros((5, 5))
  for i, j in itertools.combinations(range(5), 2):
    pairs[i, j], pairs[j, i] = scores(checkpoint, ["q"], [[answers[i], answers[j]]])[0]
  np.testing.assert_allclose(found, pairs.sum(1) / 4, 1e-3, 1e-4)
  assert not np.allclose(scores(checkpoint, ["q"], [answers[:3]])[0], found[:3], atol=1e-4)


def test_what_has_no_rival_has_no_preference(checkpoint):
  np.testing.assert_array_equal(scores(checkpoint, ["q", "r"], [["a"], ["b"]]), np.zeros((2, 1)))
  np.testing.assert_array_equal(scores(checkpoint, ["q"], [["a", "a", "a"]]), np.zeros((1, 3)))
  assert scores(checkpoint, ["q"], [[]]).shape == (1, 0)
