"""Judges who err: what each noise does to labels, how often, and what a round makes of it."""

import dataclasses
import functools
import inspect
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
import tiny_rounds

from larpo_jax import inputs, lookup, retrieval, rounds, stage, writers
from larpo_jax.data import batching, grouping, lists, noise, readers
from larpo_jax.losses import _scores, listwise, pairwise, wrappers
from larpo_jax.rewards import rules
from larpo_jax.types import Batch, LogProbs

NOISES = {f"noise.{name}": function for name, function in lookup.functions(noise).items()}
SHAPES = [lists.whole, lists.best_worst, lists.best_all, lists.top_bottom]

every = pytest.mark.parametrize("name", NOISES)


def built(seed, count=150):
  """(rewards, labels) of lists of two to seven that strategies make, some with ties."""
  rng = np.random.default_rng(seed)
  while count:
    scores = rng.integers(0, rng.integers(2, 9), rng.integers(2, 8)) / 4 - 0.5
    for places, labels in SHAPES[rng.integers(len(SHAPES))](scores, rng):
      count -= count > 0
      yield scores[places], np.asarray(labels)


def flips(function, rewards, seed, count=4000):
  """How many of so many pairs with these rewards have their labels swapped."""
  rewards, labels = np.asarray(rewards, float), np.array([1.0, 0.0])
  given = [function(rewards, labels, np.random.default_rng([seed, n])) for n in range(count)]
  assert all(sorted(each) == [0.0, 1.0] for each in given)
  return sum(each[0] == 0.0 for each in given)


def as_often(found, chance, count=4000):
  return stats.binomtest(found, count, chance).pvalue > 1e-7


def test_all_are_found_and_documented():
  found = ("symmetric", "annotators", "margin_dependent", "bradley_terry", "position_bias")
  assert set(NOISES) == {f"noise.{name}" for name in found}
  for name, function in NOISES.items():
    assert inspect.getdoc(function)
    assert grouping.noise(dict(name=name)) is function
  assert grouping.noise(None) is None


@every
def test_labels_keep_their_values_and_prefer_some_response(name, seed):
  for number, (rewards, labels) in enumerate(built(seed)):
    before = rewards.copy(), labels.copy()
    given = NOISES[name](rewards, labels, np.random.default_rng(number))
    assert set(given) == set(labels)
    assert len(set(given)) > 1
    again = NOISES[name](rewards, labels, np.random.default_rng(number))
    assert given.tolist() == again.tolist(), "it draws from its generator alone"
    assert (rewards.tolist(), labels.tolist()) == (before[0].tolist(), before[1].tolist())


@pytest.mark.parametrize(
  "spec",
  [
    dict(name="noise.symmetric", rate=0.0),
    dict(name="noise.annotators", rates=(0.0,)),
    dict(name="noise.margin_dependent", rate=0.0),
    dict(name="noise.margin_dependent", rate=1.0, scale=1e-9),
    dict(name="noise.bradley_terry", scale=0.0),
    dict(name="noise.position_bias", scale=0.0, bias=0.0),
  ],
  ids=lambda spec: " ".join(map(str, spec.values())),
)
def test_a_noise_of_nothing_leaves_labels_as_they_are(spec, seed):
  judge = grouping.noise(spec)
  for number, (rewards, labels) in enumerate(built(seed)):
    given = judge(rewards, labels, np.random.default_rng(number))
    assert given.tolist() == labels.tolist()


def test_symmetric_flips_at_its_rate_whatever_the_rewards(seed):
  for rate in (0.1, 0.4):
    judge = functools.partial(noise.symmetric, rate=rate)
    for rewards in ([0.2, 0.1], [9.0, -9.0]):
      found = flips(judge, rewards, seed)
      assert as_often(found, rate)
      assert not as_often(found, rate + 0.15)


def test_annotators_err_each_at_their_own_rate_on_a_share_of_lists_each(seed):
  judge = functools.partial(noise.annotators, rates=(0.0, 0.3, 0.9))
  found = flips(judge, [0.2, 0.1], seed)
  assert as_often(found, 0.4)
  assert not as_often(found, 0.3)
  alone = functools.partial(noise.annotators, rates=(1.0,))
  assert as_often(flips(alone, [0.2, 0.1], seed), 1.0)


def test_what_a_rate_turns_round_any_higher_rate_turns_round(seed):
  rewards, labels = np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.5, 0.0])
  for number in range(200):
    given = [
      noise.symmetric(rewards, labels, np.random.default_rng([seed, number]), rate=rate)[0]
      for rate in (0.1, 0.3, 0.7, 1.0)
    ]
    assert given == sorted(given, reverse=True)
    assert given[-1] == 0.0


def test_wide_gaps_are_flipped_less_often(seed):
  judge = functools.partial(noise.margin_dependent, rate=0.5, scale=2.0)
  for gap in (0.0, 1.0, 4.0):
    assert as_often(flips(judge, [gap, 0.0], seed), 0.5 * np.exp(-gap / 2.0))


def test_of_a_pair_it_is_bradley_terry(seed):
  for gap, scale in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.5), (3.0, 2.0)):
    judge = functools.partial(noise.bradley_terry, scale=scale)
    found = flips(judge, [gap, 0.0], seed)
    assert as_often(found, 1 / (1 + np.exp(gap / scale)))
  assert not as_often(found, 1 / (1 + np.exp(3.0)))


def test_of_a_list_it_is_plackett_luce(seed):
  rewards = np.array([1.0, 0.3, 0.0])
  labels = rewards
  orders = [
    tuple(np.argsort(-noise.bradley_terry(rewards, labels, np.random.default_rng([seed, n]))))
    for n in range(6000)
  ]
  worth = np.exp(rewards)
  chances = {}
  for first, second, third in {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}:
    left = worth[second] + worth[third]
    chances[first, second, third] = worth[first] / worth.sum() * worth[second] / left
  observed = [orders.count(order) for order in chances]
  wanted = 6000 * np.array(list(chances.values()))
  assert stats.chisquare(observed, wanted).pvalue > 1e-7
  assert stats.chisquare(observed, wanted[::-1]).pvalue < 1e-7


def test_a_judge_drawn_to_the_first_errs_where_the_worse_is_shown_first(seed):
  certain = functools.partial(noise.position_bias, bias=0.5, scale=0.0)
  assert as_often(flips(certain, [0.3, 0.0], seed), 0.5), "first is preferred"
  assert flips(certain, [0.7, 0.0], seed) == 0, "but not to what is better by more than the bias"
  unsure = functools.partial(noise.position_bias, bias=2.0, scale=1.0)
  wrong = [1 / (1 + np.exp(1.0 + shift)) for shift in (2.0, -2.0)]
  assert as_often(flips(unsure, [1.0, 0.0], seed), sum(wrong) / 2)
  for bias in (-1.5, 1.5):
    fair = functools.partial(noise.position_bias, bias=bias, scale=0.0)
    assert as_often(flips(fair, [1.0, 0.0], seed), 0.5), "either end"


def test_a_list_is_turned_round_as_a_whole():
  labels = np.array([0.2, 0.9, 0.2, 0.5])
  turned = noise.symmetric(labels, labels, np.random.default_rng(0), rate=1.0)
  assert turned.tolist() == [0.9, 0.2, 0.9, 0.5]
  one = np.array([1.0, 0.0, 0.0])
  assert noise.symmetric(one, one, np.random.default_rng(0), rate=1.0).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("kernel", [pairwise.dpo, listwise.listmle, listwise.contrastive])
def test_the_robust_loss_is_unbiased_under_symmetric_noise(kernel, seed):
  """On lists, too, and on those of label 1 against 0: over the flip, its mean is the clean loss."""
  rng = np.random.default_rng(seed)
  epsilon = float(rng.uniform(0.05, 0.4))
  for rewards, labels in list(built(seed, 6)):
    size = len(labels)
    mask = jnp.ones((1, size, 1))
    policy, reference = (LogProbs(jnp.asarray(rng.normal(size=(1, size, 1))), mask) for _ in "pr")
    nothing = jnp.zeros((1, size, 1), jnp.int32)
    batch = Batch(
      nothing, nothing > 0, nothing, mask, jnp.asarray(labels[None]), jnp.ones((1, size), bool),
      jnp.ones(1), jnp.zeros(1, jnp.int32),
    )  # fmt: skip
    turned = noise.symmetric(rewards, labels, rng, rate=1.0)
    other = dataclasses.replace(batch, label=jnp.asarray(turned[None]))
    robust = wrappers.robust(kernel, epsilon=epsilon)
    kept, flipped = (float(robust(policy, reference, each)[0][0]) for each in (batch, other))
    clean = float(kernel(policy, reference, batch)[0][0])
    assert (1 - epsilon) * kept + epsilon * flipped == pytest.approx(clean, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
  ("name", "arguments", "said"),
  [
    ("symmetric", dict(rate=1.5), "rate=1.5 must be from 0 to 1"),
    ("margin_dependent", dict(rate=-0.1), "rate=-0.1 must be from 0 to 1"),
    ("margin_dependent", dict(scale=0.0), "scale=0.0 must be above 0"),
    ("bradley_terry", dict(scale=-1.0), "scale=-1.0 must be at least 0"),
    ("position_bias", dict(scale=-1.0), "scale=-1.0 must be at least 0"),
    ("position_bias", dict(bias=np.inf), "bias=inf must be a finite number"),
  ],
)
def test_numbers_out_of_range_are_refused(name, arguments, said):
  pair = np.array([1.0, 0.0])
  with pytest.raises(ValueError, match=said):
    NOISES[f"noise.{name}"](pair, pair, np.random.default_rng(0), **arguments)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
  """A session whose first round has its candidates, and these."""
  started, params = tiny_rounds.start(tmp_path_factory.mktemp("session"))
  here = tiny_rounds.placed(started, tmp_path_factory.mktemp("round"))
  pool = retrieval.retrieve(here, params, 0, inputs.prompts(here), rules.brevity)
  return started, params, pool


@pytest.fixture
def judged(sampled, tmp_path):
  """The lists of the first round, of pairs unless told otherwise, and the session."""

  def build(name, **settings):
    settings = {"lists": dict(name="lists.all_pairs"), **settings}
    here = tiny_rounds.placed(sampled[0], tmp_path / name, **settings)
    return here, rounds.build(here, 0, {0: sampled[2]})

  return build


def rows(data):
  return [data[index] for index in range(len(data))]


def flip(rate):
  return dict(name="noise.symmetric", rate=rate)


def test_without_noise_a_row_has_no_second_score(judged):
  here, data = judged("clean")
  assert all(row.scores is None for row in rows(data))
  line = json.loads((here.workdir / "rounds/0/lists.jsonl").read_text().splitlines()[0])
  assert set(line) == {"prompt", "responses", "scores"}


def test_noise_changes_labels_and_leaves_lists_and_rewards(judged):
  _, clean = judged("clean")
  _, level = judged("level", noise=flip(0.0))
  _, wrong = judged("wrong", noise=flip(1.0))
  assert rounds.misjudged(level) == 0.0
  assert rounds.misjudged(wrong) == 1.0
  for before, same, after in zip(rows(clean), rows(level), rows(wrong), strict=True):
    assert before.labels == same.labels == after.labels[::-1]
    assert before.labels == same.scores == after.scores
    ids = [[each.tolist() for each in row.responses] for row in (before, same, after)]
    assert ids[0] == ids[1] == ids[2]


def test_a_loss_reads_the_noisy_labels_and_the_clean_scores(judged):
  _, data = judged("wrong", noise=flip(1.0))
  batch = next(batching.batches(data, batch_size=4, shuffle=False))
  assert (_scores.score(batch) == batch.score).all()
  np.testing.assert_array_equal(batch.score, batch.label[:, ::-1])


def test_lists_are_written_so_that_the_reader_finds_both(judged):
  here, data = judged("wrong", noise=flip(1.0))
  columns = dict(prompt="prompt", responses="responses", scores="scores")
  text = (here.workdir / "rounds/0/lists.jsonl").read_text()
  for line, row in zip(text.splitlines(), rows(data), strict=True):
    read = readers.lists(json.loads(line), **columns, second_scores="second_scores")
    assert read.labels == pytest.approx(row.labels)
    assert read.scores == pytest.approx(row.scores)


def test_noise_is_drawn_by_seed_round_and_place(judged, sampled):
  spec = dict(name="noise.bradley_terry", scale=1.0)
  here, data = judged("one", noise=spec)
  _, again = judged("two", noise=spec)
  labels = [row.labels for row in rows(data)]
  assert [row.labels for row in rows(again)] == labels
  assert 0 < rounds.misjudged(data) < 1, "of some thirty pairs"
  config = here.config.copy_and_resolve_references()
  config.seed += 1
  other = dataclasses.replace(here, config=config, workdir=here.workdir / "other")
  assert [row.labels for row in rows(rounds.build(other, 0, {0: sampled[2]}))] != labels
  later = dataclasses.replace(here, workdir=here.workdir / "later")
  assert [row.labels for row in rows(rounds.build(later, 1, {1: sampled[2]}))] != labels


def test_flips_do_not_depend_on_what_a_strategy_draws(judged):
  found = []
  for name in ("best_worst", "best_random"):  # one list a prompt, and the second draws it
    _, data = judged(name, noise=flip(0.5), lists=dict(name=f"lists.{name}"))
    found.append([row.labels[0] > row.labels[1] for row in rows(data)])
  assert found[0] == found[1]
  assert len(set(found[0])) == 2


def test_lists_that_the_reward_contradicts_can_be_left_out(judged):
  _, all_of_them = judged("all", noise=flip(0.5))
  _, rest = judged("rest", noise=flip(0.5), agreed=True)
  right = [row for row in rows(all_of_them) if row.labels == row.scores]
  assert [row.labels for row in rows(rest)] == [row.labels for row in right]
  assert len(rest) + rest.report.rejected["contradicted"] == len(all_of_them)
  assert rounds.misjudged(rest) == rounds.misjudged(all_of_them)
  assert rounds.misjudged(rest) == pytest.approx(1 - len(right) / len(all_of_them))
  with pytest.raises(ValueError, match="changed who is preferred in every list"):
    judged("none", noise=flip(1.0), agreed=True)


@pytest.mark.usefixtures("learnt")
def test_the_row_of_a_round_tells_what_the_noise_changed(sampled, tmp_path):
  started, params, _ = sampled
  here = tiny_rounds.placed(started, tmp_path, noise=flip(1.0), count=2)
  ask = functools.partial(stage.Evaluation, {"gold/reward": 0.5}, [])
  for _ in range(2):  # the second time as a run that goes on
    rounds.learn(
      here, params, inputs.prompts(here), rules.brevity, before={}, evaluate=lambda _: ask()
    )
    told = [row for row in writers.read(here.workdir) if row["stage"] == "rounds"]
    assert [row["lists/misjudged"] for row in told] == [1.0, 1.0]
