"""Win rates: of rewards, of planted length biases, and of what is no annotation."""

import json
import math

import numpy as np
import pytest
from scipy import optimize, special

from larpo_jax import evaluation
from larpo_jax import winrate as command
from larpo_jax.evaluators import winrate


def annotations(gaps, preferences):
  """Answers whose lengths differ by gaps, model minus baseline."""
  return [
    {"instruction": f"i{n}", "output_1": "a" * 500, "output_2": "b" * (500 + int(gap))}
    | {"preference": float(preference)}
    for n, (gap, preference) in enumerate(zip(gaps, preferences))
  ]


def drawn(seed, count, *, theta, phi, shift=0.0, gamma=0.0, psi=0.0):
  """Annotations by the model itself, as probabilities, with a length bias phi; and their gaps."""
  generator = np.random.default_rng(seed)
  gaps = np.clip(np.round(generator.normal(shift, 60, count)), -450, 1000)
  chance = special.expit(theta + phi * np.tanh(gaps / np.std(gaps, ddof=1)) + psi * gamma)
  return annotations(gaps, 1 + chance), generator


def test_a_planted_length_bias_is_taken_out(seed):
  """Longer answers, that win by length alone, look better than they are; shorter ones worse."""
  for shift in (80.0, -80.0):
    rows, generator = drawn(seed, 4000, theta=-0.4, phi=1.5, shift=shift)
    fair = special.expit(-0.4)
    found = winrate.win_rate(rows)
    assert (found.plain - fair) * np.sign(shift) > 0.05
    assert found.length_controlled == pytest.approx(fair, abs=1e-3)
    assert found.length == pytest.approx(1.5, abs=1e-2)
    # Judged by a coin of that chance: within its noise.
    coins = [
      row | {"preference": 1.0 + (generator.random() < row["preference"] - 1)} for row in rows
    ]
    assert winrate.win_rate(coins).length_controlled == pytest.approx(fair, abs=0.06)


def test_it_is_the_plain_rate_where_lengths_do_not_matter(seed):
  rows, generator = drawn(seed, 3000, theta=0.7, phi=0.0, shift=50.0)
  found = winrate.win_rate(rows)
  assert found.length_controlled == pytest.approx(found.plain, abs=1e-9)
  assert found.length == pytest.approx(0.0, abs=1e-6)
  # Exactly so for answers of one length, whatever was preferred.
  wins = generator.integers(1, 3, 50)
  found = winrate.win_rate(annotations(np.full(50, 30), wins))
  assert found.plain == np.mean(wins - 1) == pytest.approx(found.length_controlled, abs=1e-9)
  assert found.stderr == pytest.approx(np.std(wins, ddof=1) / np.sqrt(50))


def test_models_that_trade_places_trade_rates(seed):
  rows, _ = drawn(seed, 300, theta=0.3, phi=0.8, shift=40.0)
  swapped = [
    row | {"output_1": row["output_2"], "output_2": row["output_1"]}
    | {"preference": 3 - row["preference"]}
    for row in rows
  ]  # fmt: skip
  one, other = winrate.win_rate(rows), winrate.win_rate(swapped)
  assert one.plain == pytest.approx(1 - other.plain)
  assert one.length_controlled == pytest.approx(1 - other.length_controlled, abs=1e-7)
  assert one.length == pytest.approx(other.length, abs=1e-6)


def test_difficulties_are_fitted_where_they_are_given(seed):
  gamma = np.random.default_rng(seed + 1).normal(size=2000)
  rows, _ = drawn(seed, 2000, theta=0.2, phi=1.0, shift=60.0, gamma=gamma, psi=0.9)
  known = {row["instruction"]: each for row, each in zip(rows, gamma)}
  found = winrate.win_rate(rows, known)
  assert found.difficulty == pytest.approx(0.9, abs=0.02)
  assert found.length == pytest.approx(1.0, abs=0.02)
  wanted = special.expit(0.2 + 0.9 * gamma).mean()
  assert found.length_controlled == pytest.approx(wanted, abs=2e-3)
  with pytest.raises(ValueError, match="1999 instructions have no difficulty, such as 'i1'"):
    winrate.win_rate(rows, {"i0": 1.0})


def test_the_fit_is_the_likeliest(seed):
  generator = np.random.default_rng(seed)
  features = np.stack([np.ones(40), *generator.normal(size=(2, 40))], axis=-1)
  win = generator.random(40)

  def loss(w):
    p = special.expit(features @ w)
    return -np.sum(win * np.log(p) + (1 - win) * np.log(1 - p)) + winrate.RIDGE / 2 * (
      w[1:] @ w[1:]
    )

  wanted = optimize.minimize(loss, np.zeros(3), method="Nelder-Mead", options=dict(xatol=1e-9)).x
  np.testing.assert_allclose(winrate._fit(features, win), wanted, atol=1e-4)


def test_what_separates_wins_from_losses_stays_finite():
  gaps = np.arange(-50, 50) * 4 + 2
  found = winrate.win_rate(annotations(gaps, np.where(gaps > 0, 2, 1)))
  assert found.plain == 0.5 == pytest.approx(found.length_controlled)
  assert 5 < found.length < 1e3
  for preference in (1, 2):
    found = winrate.win_rate(annotations(gaps, np.full(100, preference)))
    assert found.plain == preference - 1 == pytest.approx(found.length_controlled, abs=1e-6)


def test_rewards_become_annotations_and_ties_count_half():
  rows = winrate.by_reward("abcd", "1234", ["x", "yy", "z", "w"], ([0, 1, 2, 3], [1, 1, 1, 4]))
  assert [row["preference"] for row in rows] == [2.0, 1.5, 1.0, 2.0]
  assert rows[1] == {"instruction": "b", "output_1": "2", "output_2": "yy", "preference": 1.5}
  assert winrate.win_rate(rows).plain == (1 + 0.5 + 0 + 1) / 4
  with pytest.raises(ValueError, match="zip"):
    winrate.by_reward("ab", "1", "x", ([0], [1]))


def test_samples_win_over_those_of_the_start_to_the_same_prompts(seed):
  rng = np.random.default_rng(seed)

  def lines(order):
    for row in order:
      reward = float(rng.integers(3))
      responses = [
        {"kind": "greedy", "text": "x", "gold/reward": 9.0},
        {"kind": "sampled", "text": "y" * rng.integers(1, 9), "gold/reward": reward},
      ]
      yield {"set": "written", "row": int(row), "prompt": f"p{row}", "responses": responses}

  begun, wrote = (list(lines(rng.permutation(12))) for _ in range(2))
  begun.append({"set": "ranked", "row": 0, "gold/reward": 5.0})
  reward = lambda found, row: next(  # noqa: E731
    x["responses"][1]["gold/reward"] for x in found if x["set"] == "written" and x["row"] == row
  )
  gaps = [reward(wrote, row) - reward(begun, row) for row in range(12)]
  wanted = np.mean(0.5 + 0.5 * np.sign(gaps))
  found = evaluation._won(begun, wrote)
  assert found["sampled/win_rate"] == pytest.approx(wanted)
  assert evaluation._won(begun, wrote[3:]) != found, "of those that both have"


def test_no_judgement_counts_for_nothing_and_0_is_a_tie():
  rows = annotations([1, 2, 3, 4], [2, 0, 1, 1])
  rows[3]["preference"] = None
  more = [*rows, rows[0] | {"preference": math.nan}]
  found = winrate.win_rate(more)
  assert found.judgements == 3
  assert found.plain == 0.5


# What alpaca_eval writes of each instruction beside what is read here.
PUBLISHED = {
  "generator_1": "gpt4_1106_preview",
  "generator_2": "ours",
  "dataset": "helpful_base",
  "annotator": "weighted_alpaca_eval_gpt4_turbo",
  "raw_completion": {"text": "M", "logprobs": {"content": [{"token": "M", "logprob": -0.01}]}},
  "price_per_example": 0.0064,
  "time_per_example": 0.5,
}


def test_the_command_prints_json_or_one_sentence(tmp_path, capsys):
  path = tmp_path / "annotations.json"
  rows = annotations([3, -2, 5], [2, 2, 1])
  found = []
  for more in ({}, PUBLISHED):
    path.write_text(json.dumps([row | more for row in rows]))
    assert command.main([str(path)]) == 0
    found.append(json.loads(capsys.readouterr().out))
  assert found[0] == found[1]
  assert found[0]["plain"] == pytest.approx(2 / 3)
  wrong = {
    "no JSON list": {"a": 1},
    "no 'output_2'": [{"instruction": "", "output_1": "", "preference": 1}],
    "preference 3 of 'i0'": [rows[0] | {"preference": 3}],
    "no annotation has a preference": [rows[0] | {"preference": None}],
  }
  for said, content in wrong.items():
    path.write_text(json.dumps(content))
    assert command.main([str(path)]) == 1
    assert said in capsys.readouterr().err
  assert command.main([str(tmp_path / "absent.json")]) == 1
