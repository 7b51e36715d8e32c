"""Reward against KL at matched KL, and curves over seeds."""

import numpy as np
import pytest
from scipy import stats
import synthetic_sweep

from larpo_jax import writers
from larpo_jax.report import collect, drawing, findings, frontier, sentences, series


def curve(reach, shape, points=5):
  """A path of which reward is a function of KL."""
  kls = np.linspace(0, reach, points)
  return [(float(kl), float(shape(kl))) for kl in kls]


def test_between_its_points_a_path_is_straight(seed):
  rng = np.random.default_rng(seed)
  kls = np.concatenate([[0], np.sort(rng.random(6))])
  rewards = rng.normal(size=7)
  way = list(zip(kls, rewards))
  for kl in rng.uniform(0, kls[-1], 20):
    assert frontier.at(way, kl) == pytest.approx(np.interp(kl, kls, rewards))
  with pytest.raises(ValueError, match="ends before"):
    frontier.at(way, kls[-1] + 0.1)


def test_a_path_that_turns_back_counts_where_it_first_came():
  way = [(0.0, 0.0), (1.0, 1.0), (0.4, 5.0), (2.0, 2.0)]
  assert frontier.at(way, 0.5) == 0.5
  assert frontier.at(way, 1.0) == 1.0
  assert frontier.reach(way) == 2.0


def test_arms_on_one_curve_differ_only_by_how_far_they_went(seed):
  rng = np.random.default_rng(seed)
  starts, slope = rng.normal(size=5), rng.uniform(0.5, 2)
  near, far = ({s: curve(reach, lambda kl, s=s: starts[s] + slope * kl) for s in range(5)}
               for reach in (0.3, 0.8))  # fmt: skip
  found = frontier.matched(far, near)
  assert found.kl == pytest.approx(0.3)
  assert found.contrast.difference == pytest.approx(0, abs=1e-12)
  ends = [far[s][-1][1] - near[s][-1][1] for s in range(5)]
  assert np.mean(ends) == pytest.approx(0.5 * slope)


def test_each_seed_is_compared_at_its_own_kl(seed):
  rng = np.random.default_rng(seed)
  reaches = rng.uniform(0.1, 1, size=(2, 6))
  slopes = rng.normal(size=(2, 6))
  arm, baseline = (
    {s: curve(side_r[s], lambda kl, m=side_m[s]: m * kl) for s in range(6)}
    for side_r, side_m in zip(reaches, slopes)
  )
  found = frontier.matched(arm, baseline)
  gaps = (slopes[0] - slopes[1]) * reaches.min(0)
  assert found.kl == pytest.approx(reaches.min(0).mean())
  assert found.contrast.difference == pytest.approx(gaps.mean())
  assert found.contrast.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
  assert frontier.matched({0: []}, {0: curve(1, abs)}) is None
  assert frontier.matched({0: curve(1, abs)}, {1: curve(1, abs)}) is None


@pytest.mark.parametrize("resumed", [False, True])
def test_a_path_has_the_evaluations_within_rounds_and_between_them(tmp_path, resumed):
  """The row of a round lies where its steps begin, wherever in the file it was written."""
  writer = writers.Writer(tmp_path)
  both = lambda value: {"eval_kl": value / 10, "eval_gold": value}  # noqa: E731
  rows = [(0, "rounds", both(0.0)), (2, "round_0", both(1.0)), (4, "round_0", {"loss": 1.0})]
  rows += [(1, "rounds", both(3.0)), (2, "round_1", both(4.0)), (3, "round_1", {"loss": 1.0})]
  rows += [(3, "round_1", both(5.0)), (2, "rounds", both(6.0))]
  if resumed:
    rows[3], rows[4] = rows[4], rows[3]
  for step, stage, row in rows:
    writer.write(step, row, stage=stage)
  writer.close()
  run = collect.Run("arm", 0, {}, {}, {}, {}, tmp_path)
  found = series.read(run)
  assert found.unit == "step"
  assert found.evaluated["eval_gold"] == ([0, 2, 4, 6, 7], [0.0, 1.0, 3.0, 4.0, 6.0])
  assert found.training["loss"][0] == [4, 7]


def arm(name, gain, reach):
  return ({"loss": name}, gain, reach)


def test_an_arm_that_only_moves_further_is_told_from_a_better_one(tmp_path, seed):
  rng = np.random.default_rng(seed)
  arms = [arm("dpo", 0.1, 0.2), arm("further", 0.2, 0.4), arm("better", 0.3, 0.2)]
  synthetic_sweep.write(tmp_path / "s", arms, seeds=8, rng=rng, noise=0.01)
  found = findings.find(tmp_path / "s")
  gaps = {name: each.matched for name, each in found.against.items()}
  assert gaps["loss=further"].kl == pytest.approx(0.2)
  # The noise of a prompt, 0.05 over 24 of them, and of a seed, 0.01, are those of both arms' ends.
  deviation = np.sqrt(0.01**2 + 0.05**2 / 24) * np.sqrt(2 / 8)
  assert abs(gaps["loss=further"].contrast.difference) < 5 * deviation
  assert abs(gaps["loss=better"].contrast.difference - 0.2) < 5 * deviation
  assert found.against["loss=further"].p < 0.05
  assert found.against["loss=better"].matched_p < 0.05
  said = {line.split(" ")[0]: line for line in sentences.contrasts(found)}
  assert "better; at matched KL (0.2 nats): better" in said["`loss=better`"]
  assert "`loss=better`" in " ".join(sentences.answer(found))


def test_without_rounds_the_path_is_start_and_end(tmp_path):
  synthetic_sweep.write(tmp_path / "s", [arm("dpo", 0.1, 0.2)], seeds=1, rounds=2)
  found = findings.find(tmp_path / "s")
  (way,) = found.paths["loss=dpo"].values()
  run = found.runs[0]
  assert len(way) == 3
  assert way[0] == (0.0, run.before["gold/reward"])
  assert way[-1] == pytest.approx((0.2, run.after["gold/reward"]))
  for path in tmp_path.glob("s/*/metrics.jsonl"):
    path.unlink()
  (short,) = findings.find(tmp_path / "s").paths["loss=dpo"].values()
  assert short == [way[0], pytest.approx(way[-1])]
  without = run._replace(after={"gold/reward": 1.0})
  assert frontier.path(without, series.Series({}, {}, "step"), "gold/reward") == []


def test_stages_follow_each_other_and_the_supervised_one_is_left_out(tmp_path):
  synthetic_sweep.write(tmp_path / "s", [arm("dpo", 0.1, 0.2)], seeds=1, rounds=3, steps=4)
  (found,) = findings.find(tmp_path / "s").series
  steps, values = found.training["logps/chosen"]
  assert steps == list(range(1, 13))
  assert values[0] > -21
  assert found.evaluated["eval_kl"][0] == [0, 1, 2, 3]
  assert found.unit == "round"
  assert series.change((steps, values))[1][0] == 0.0


def test_a_band_is_the_t_interval_at_each_step(seed):
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(5, 10))
  band = series.band([(list(range(10)), list(row)) for row in values])
  for step in range(10):
    wanted = stats.ttest_1samp(values[:, step], 0).confidence_interval(0.95)
    assert (band.low[step], band.high[step]) == pytest.approx(tuple(wanted))
  np.testing.assert_allclose(band.mean, values.mean(0))


def test_a_long_curve_is_drawn_by_means_of_bins(seed):
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(3, 6000))
  band = series.band([(list(range(6000)), list(row)) for row in values])
  assert len(band.steps) == series.BINS
  np.testing.assert_allclose(band.mean, values.reshape(3, 60, 100).mean((0, 2)), atol=0.05)
  assert band.mean.mean() == pytest.approx(values.mean(), abs=1e-3)


def test_seeds_that_stopped_early_count_where_they_are():
  band = series.band([([1, 2, 3], [1.0, 2.0, 3.0]), ([1, 2], [3.0, 4.0])])
  np.testing.assert_allclose(band.mean, [2.0, 3.0, 3.0])
  assert np.isnan(band.low[2])
  assert not np.isnan(band.low[1])


def test_labels_fit_and_tell_arms_apart_by_what_is_needed():
  arms = [
    "lists=a, loss=pairwise.dpo, beta=0.1",
    "lists=a, loss=pairwise.ipo, delta=3",
    "lists=b, x=1",
  ]
  assert drawing.labels(arms, 60) == {arm: arm for arm in arms}
  assert list(drawing.labels(arms, 30).values()) == [
    "lists=a, loss=pairwise.dpo", "lists=a, loss=pairwise.ipo", "lists=b, x=1",
  ]  # fmt: skip
  assert all(len(label) <= 20 for label in drawing.labels(arms, 20).values())
  same = [f"lists=something.long, beta={beta}" for beta in (0.1, 0.2)]
  assert list(drawing.labels(same, 12).values()) == ["beta=0.1", "beta=0.2"]
  crossed = [
    f"loss=some.thing, a={a}, b={b}, c={c}" for a in (1, 2) for b in (1, 2) for c in (1, 2)
  ]
  assert list(drawing.labels(crossed, 30).values()) == crossed, "each part is needed"
  some = ["loss=dpo", *(f"loss=margins, beta=1, c={c}, tau=7, side=full" for c in (2, 4))]
  some.append("loss=margins, beta=1, c=4, tau=7, side=half")
  assert list(drawing.labels(some, 30).values()) == [
    "loss=dpo", "loss=margins, beta=1, c=2",
    "loss=margins, c=4, side=full", "loss=margins, side=half",
  ]  # fmt: skip
