"""Novelty in rounds: it goes with its response into the lists, after a stop as without one."""

import collections
import dataclasses
import json
import shutil
import types

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny_rounds
from tiny_rounds import PROMPTS, ROUNDS

from larpo_jax import coverage, inputs, novelty, retrieval, rounds, workdir
from larpo_jax.data import batching
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.rewards import rules

COIN_FLIPS = dict(name="novelty.coin_flips", epochs=2, flips=4, hidden=8, batch_size=8)
SPECS = dict(counts=dict(name="novelty.counts"), first=dict(name="novelty.first"))
SPECS |= dict(coin_flips=COIN_FLIPS)


@pytest.fixture
def run(started, tmp_path, learnt):
  """What each round of a run learns from, where learning moves the parameters a little."""

  def run(name="run", **settings):
    found, params = started
    here = tiny_rounds.placed(found, tmp_path / name, **settings)
    (tmp_path / name).mkdir(exist_ok=True)
    learnt.clear()
    asked = inputs.prompts(here)
    answer = lambda params: Evaluation({"gold/reward": 0.0}, [])  # noqa: E731
    rounds.learn(here, params, asked, rules.brevity, before={"gold/reward": 0.0}, evaluate=answer)
    return here, [call["data"] for call in learnt]

  return run


def rows(data):
  return [data[index] for index in range(len(data))]


def lines(here, number, name="candidates"):
  return workdir.read_jsonl(here.workdir / "rounds" / str(number) / f"{name}.jsonl")


def test_without_a_novelty_nothing_is_said_of_importance(run):
  here, learnt = run()
  assert all(row.importance is None for data in learnt for row in rows(data))
  assert set(lines(here, 0, "lists")[0]) == {"prompt", "responses", "scores"}


@pytest.mark.parametrize(
  ("settings"),
  [
    dict(lists=dict(name="lists.best_worst"), memory="all", prompt_split="shared"),
    dict(lists=dict(name="lists.all_pairs"), memory="previous"),
    dict(dedupe=True, gold=True),
  ],
  ids=["merged", "replayed", "gold"],
)
def test_counts_go_with_their_responses(settings, run):
  # Of two tokens, some responses come again.
  here, learnt = run(novelty=SPECS["counts"], max_tokens=2, top_k=2, candidates=4, **settings)
  tally = collections.Counter()
  again = False
  for number, data in enumerate(learnt):
    tally.update(
      (line["prompt"], text) for line in lines(here, number) for text in line["responses"]
    )
    told = lines(here, number, "lists")
    for row, line in zip(rows(data), told, strict=True):
      wanted = [max(tally[line["prompt"], text], 1) ** -0.5 for text in line["responses"]]
      assert row.importance == pytest.approx(wanted)
      assert line["importance"] == pytest.approx(wanted)
      again |= min(wanted) < 1
    batch = next(iter(batching.batches(data, batch_size=4, shuffle=False, shapes=1)))
    np.testing.assert_allclose(batch.importance[0, : len(data[0].labels)], data[0].importance)
  assert again, "no count was above 1"


def test_the_greedy_answer_is_explored(run):
  here, learnt = run(novelty=SPECS["first"], greedy=True)
  for number, data in enumerate(learnt):
    greedy = {line["prompt"]: line["responses"][0] for line in lines(here, number)}
    for row, line in zip(rows(data), lines(here, number, "lists"), strict=True):
      assert row.importance == [float(t == greedy[line["prompt"]]) for t in line["responses"]]
      assert 1.0 in row.importance


@pytest.mark.parametrize("name", SPECS)
def test_a_round_that_was_killed_has_the_same_importance(name, run, tmp_path):
  settings = dict(novelty=SPECS[name], memory="all", prompt_split="shared")
  whole, learnt = run("whole", **settings)
  wanted = [[row.importance for row in rows(data)] for data in learnt]
  shutil.copytree(tmp_path / "whole" / "rounds", tmp_path / "killed" / "rounds")
  for lost in ("1/lists", "2"):
    shutil.rmtree(tmp_path / "killed" / "rounds" / lost)
  killed, again = run("killed", **settings)
  assert [[row.importance for row in rows(data)] for data in again] == wanted
  assert len({json.dumps(each[0]) for each in wanted}) == ROUNDS or name == "first"
  for number in range(ROUNDS):
    assert lines(killed, number, "lists") == lines(whole, number, "lists")


def test_states_are_those_at_the_last_token_of_each_response_alone(started, tmp_path):
  here = tiny_rounds.placed(started[0], tmp_path, max_tokens=7)
  params = started[1]
  data = retrieval.retrieve(here, params, 0, inputs.prompts(here), rules.brevity)
  assert len({len(ids) for row in rows(data) for ids in row.responses}) > 1, "some are padded"
  found = novelty.states(here, params, data)
  assert found.shape == (PROMPTS, 4, here.architecture.hidden_size)
  net = nnx.merge(here.model, here.whole(params))
  read = jax.jit(lambda tokens: net(tokens, jnp.arange(tokens.shape[-1])[None, None], tokens >= 0))
  for place in (0, PROMPTS - 1):
    for k in (0, 3):
      tokens = np.concatenate([data[place].prompt, data[place].responses[k]])
      hidden, _ = read(tokens[None, None])
      np.testing.assert_allclose(found[place, k], hidden[0, 0, -1], rtol=1e-4, atol=1e-4)


SAMPLED = [
  # Of the modes gac, bac, cac and dac, three and then the best one; and to another prompt one.
  [("bgac:", ["bac", "bac", "cac"]), ("hhhh:", ["ahh", "abc", ""])],
  [("bgac:", ["gac", "bac", "dac"])],
]


def test_a_strategy_sees_each_round_of_its_own_under_the_start(started, tmp_path, monkeypatch):
  here = tiny_rounds.placed(started[0], tmp_path, novelty=dict(name="novelty.counts"))
  params, prompts = started[1], inputs.prompts(here)
  pools = [retrieval.retrieve(here, params, n, prompts, rules.brevity) for n in range(2)]
  by_name = types.SimpleNamespace(resolve=lambda *_: lambda sampled: sampled)
  monkeypatch.setattr(novelty, "lookup", by_name)
  sampled = novelty.importance(here, pools, params)
  for number, pool in enumerate(pools):
    assert [repr(row) for row in sampled.rounds[number]] == [repr(row) for row in rows(pool)]
    found = sampled.encode(number)
    np.testing.assert_array_equal(found, novelty.states(here, params, pool))
  assert np.any(sampled.encode(0) != sampled.encode(1))


def test_coverage_is_of_all_samples_up_to_a_round(started, tmp_path):
  here = tiny_rounds.placed(started[0], tmp_path)
  assert coverage.described(here, 0) == {}, "this world does not say what its modes are"
  config = here.config.copy_and_resolve_references().unlock()
  config.world = ml_collections.ConfigDict(dict(name="bandit"))
  here = dataclasses.replace(here, config=config)
  for number, written in enumerate(SAMPLED):
    path = tmp_path / "rounds" / str(number) / "candidates.jsonl"
    path.parent.mkdir(parents=True)
    told = [dict(prompt=prompt, responses=responses) for prompt, responses in written]
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
  # ahh is hhhh:'s second mode, h going on to a; abc is of that arm with no letter right.
  first = np.array([0.7, 0.7, 0.6, 0.6, 1.0, 1.0])
  wanted = dict(seen=5, found=0, modes=3 / 8, regret=first.mean())
  assert coverage.described(here, 0) == {
    f"candidates/{name}": pytest.approx(value) for name, value in wanted.items()
  }
  both = np.append(first, [0.0, 0.7, 0.5])
  wanted = dict(seen=7, found=1 / 2, modes=5 / 8, regret=both.mean())
  assert coverage.described(here, 1) == {
    f"candidates/{name}": pytest.approx(value) for name, value in wanted.items()
  }
