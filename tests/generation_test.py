"""What is said of what a policy writes, with a sampler and a scorer whose answers are known."""

import numpy as np
import pytest

from larpo_jax.evaluators import generation
from larpo_jax.sampling import Samples
from larpo_jax.types import LogProbs

B, R = 3, 4
PROMPTS = generation.Prompts(
  ["a", "b", "c"], np.ones((B, 1, 2), np.int32), np.ones((B, 1, 2), bool)
)
LENGTHS = {0.0: (1, 2, 4), 1.0: (2, 2, 1)}  # of the greedy and of the sampled answers
POLICY, START = np.asarray([-1.0, -2.0, -4.0]), np.asarray([-2.0, -2.5, -7.0])  # per token


def sample(params, ids, mask, key, *, temperature, candidates):
  assert (params, key, candidates) == ("policy", "key", 1)
  assert ids is PROMPTS.ids
  assert mask is PROMPTS.mask
  on = np.arange(R) < np.asarray(LENGTHS[temperature])[:, None, None]
  return Samples(
    response=np.where(on, 7 + int(temperature), 0).astype(np.int32),
    mask=on.astype(np.float32),
    logprob=np.where(on, POLICY[:, None, None], 0.0),
    finished=np.sum(on, axis=-1) < R,
  )


def score(params, batch):
  assert params == "start"
  assert (batch.response[batch.response_mask > 0] == 8).all(), (
    "what was sampled, not what is greedy"
  )
  token = np.where(batch.response_mask > 0, START[:, None, None], 0.0)
  return LogProbs(token=token, mask=batch.response_mask)


def decode(response, mask):
  return [["".join(map(str, ids[on > 0])) for ids, on in zip(*row)] for row in zip(response, mask)]


def test_rewards_and_lengths_are_of_greedy_answers_and_kl_of_samples():
  judged = []

  def judge(prompts, answers):
    judged.append((prompts, answers))
    return [[len(text) / 4 for text in row] for row in answers]

  found, lines = generation.generation(
    sample, score, "policy", "start", PROMPTS, decode=decode, judges={"gold": judge}, key="key"
  )
  texts = [[["7"], ["77"], ["7777"]], [["88"], ["88"], ["8"]]]  # greedy, sampled
  assert judged == [(["a", "b", "c"], each) for each in texts]
  ratio = (POLICY - START) * LENGTHS[1.0]  # 2, 1 and 3
  assert found["gold"] == pytest.approx(7 / 12)
  assert found["sampled/gold"] == pytest.approx(5 / 12)
  assert found["length"] == pytest.approx(7 / 3)
  assert found["finished"] == pytest.approx(2 / 3)
  assert found["kl"] == pytest.approx(2.0) == np.mean(ratio)
  assert found["kl_k3"] == pytest.approx(np.mean(np.exp(-ratio) - 1 + ratio))
  assert found["kl_stderr"] == pytest.approx(np.std(ratio) / np.sqrt(3))

  # A line a prompt, whose means are the numbers.
  assert [line["prompt"] for line in lines] == ["a", "b", "c"]
  for name in set(found) - {"kl_stderr"}:
    assert found[name] == pytest.approx(np.mean([line[name] for line in lines]))
  greedy, sampled = lines[2]["responses"]
  assert greedy == {"kind": "greedy", "text": "7777", "gold": 1.0}
  assert sampled == {"kind": "sampled", "text": "8", "gold": 0.25} | {
    "logprob": -4.0,
    "start_logprob": -7.0,
  }


def test_k3_is_the_kl_never_negative_and_steadier_near_the_start(seed):
  generator = np.random.default_rng(seed)
  count, prompts = 40_000, generation.Prompts(["p"] * 40_000, np.ones((40_000, 1, 1)), None)
  start = generator.dirichlet(np.full(6, 5.0))
  policy = start * np.exp(generator.normal(0, 0.2, 6))
  policy /= policy.sum()
  drawn = generator.choice(6, (count, 1, 1), p=policy)
  samples = Samples(
    drawn, np.ones(drawn.shape, np.float32), np.log(policy)[drawn], drawn[..., 0] < 9
  )
  _, lines = generation.generation(
    lambda *asked, **how: samples,
    lambda params, batch: LogProbs(token=np.log(start)[batch.response], mask=batch.response_mask),
    None, None, prompts, decode=lambda ids, mask: [[""]] * count, judges={}, key=None,
  )  # fmt: skip
  exact = np.sum(policy * np.log(policy / start))
  plain, k3 = (np.array([line[name] for line in lines]) for name in ("kl", "kl_k3"))
  assert np.all(k3 >= 0)
  assert np.any(plain < 0)
  for each in (plain, k3):
    assert abs(each.mean() - exact) < 6 * each.std() / np.sqrt(count)
  assert k3.std() < plain.std() / 2


def test_means_are_by_weight_and_what_does_not_count_has_no_line():
  lines = generation.ranked({"x": np.asarray([1.0, 2.0])}, np.asarray([5, 3]), np.ones(2))
  lines += generation.ranked(
    {"x": np.asarray([4.0, 100.0])}, np.asarray([4, -1]), np.asarray([2.0, 0.0])
  )
  assert [line["row"] for line in lines] == [5, 3, 4]
  assert generation.weighted_means(lines) == {"x": pytest.approx(11 / 4)}
  assert generation.weighted_means([]) == {}
