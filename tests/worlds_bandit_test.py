"""The bandit: its reward against a table of all answers, its splits, its demonstrations."""

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from larpo_jax import worlds
from larpo_jax.rewards import worlds as rewards
from larpo_jax.worlds import bandit

ANSWERS = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=3)]
CONTEXTS = st.text("abcdefgh", min_size=4, max_size=4)


def table(context):
  """The reward of each of the 512 answers, written once more."""
  steps = {0: 3, 1: 4, 2: 5, 5: 10}  # in tenths
  found = {}
  for first, second, third in itertools.product("abcdefgh", repeat=3):
    right = (second == context[2]) + (third == context[3])
    found[first + second + third] = steps.get((ord(first) - ord(context[0])) % 8, 1) * right**2 / 40
  return found


@settings(max_examples=50, deadline=None)
@given(CONTEXTS)
def test_reward_and_accuracy_of_every_answer(context):
  prompt, wanted = bandit.prompt(context), table(context)
  assert wanted.keys() == set(ANSWERS)
  (found,) = bandit.gold([prompt], [ANSWERS])
  np.testing.assert_allclose(found, [wanted[each] for each in ANSWERS], rtol=1e-6)
  np.testing.assert_array_equal(rewards.bandit([prompt], [ANSWERS]), [found])
  (right,) = bandit.accuracy([prompt], [ANSWERS])
  assert [answer for answer, one in zip(ANSWERS, right) if one] == [bandit.solution(prompt)]
  best, *common = bandit.modes(prompt)
  assert best == bandit.solution(prompt) == max(wanted, key=wanted.get)
  assert [wanted[each] for each in (best, *common)] == [1.0, 0.3, 0.4, 0.5]
  # Whatever is worth more than half a common mode is a mode.
  assert {each for each, value in wanted.items() if value > 0.25} == {best, *common}


@settings(max_examples=200, deadline=None)
@given(CONTEXTS, st.text() | st.text("abcdefgh:", max_size=5))
def test_no_response_raises_and_only_an_answer_earns(context, response):
  ((reward,),) = bandit.gold([bandit.prompt(context)], [[response]])
  assert (bandit.answer(response) is None) == (response not in ANSWERS)
  assert reward == 0 or response in ANSWERS


@settings(max_examples=200, deadline=None)
@given(st.text() | st.from_regex(r"[a-i]{3,5}:?", fullmatch=True))
def test_a_prompt_is_a_context_or_a_value_error(text):
  if re.fullmatch("[a-h]{4}:", text.strip()):
    assert len(bandit.modes(text)) == 4
    return
  for function in (bandit.modes, bandit.solution, lambda t: bandit.gold([t], [["abc"]])):
    with pytest.raises(ValueError, match="is no context of the bandit; write one like"):
      function(text)


def test_splits_never_share_a_context(seed):
  drawn = {
    split: set(bandit.problems(1000, seed=seed, split=split))
    | set(bandit.problems(500, seed=seed + 1, split=split))
    for split in bandit.SPLITS
  }
  for split, contexts in drawn.items():
    assert len(contexts) > 200
    assert {bandit.split_of(context) for context in contexts} == {split}
    assert not contexts & set().union(*(drawn[other] for other in set(drawn) - {split}))


def test_seed_and_index_decide_everything(seed):
  whole = bandit.problems(50, seed=seed)
  assert bandit.problems(20, seed=seed, start=30) == whole[30:]
  assert bandit.problems(50, seed=seed + 1) != whole
  shown = bandit.demonstrations(50, seed=seed)
  assert bandit.demonstrations(20, seed=seed, start=30) == shown[30:]
  assert [each.prompt for each in shown] == [bandit.prompt(context) for context in whole]


@pytest.mark.parametrize("rare", [0.0, 0.2, 1.0])
def test_demonstrations_are_modes_and_the_best_one_is_as_rare_as_asked(rare, seed):
  shown = worlds.ask(dict(name="bandit", rare=rare), "demonstrations", 2000, seed=seed)
  places = np.array([bandit.modes(each.prompt).index(each.response) for each in shown])
  shares = np.bincount(places, minlength=4) / len(shown)
  wanted = [rare, *((1 - rare) * np.array([0.5, 0.3, 0.2]))]
  np.testing.assert_allclose(shares, wanted, atol=0.06)  # 5 standard deviations of the widest
  assert rare not in (0.0, 1.0) or shares[0] == rare


def test_wrong_arguments_are_named():
  for arguments, named in ((dict(split="tset"), "tset"), (dict(start=-1), "start=-1")):
    with pytest.raises(ValueError, match=named):
      bandit.problems(1, **{"seed": 0, **arguments})
  with pytest.raises(ValueError, match=r"rare=1\.5 is not a share"):
    bandit.demonstrations(1, seed=0, rare=1.5)


def test_tokenizer_gives_the_text_back(seed):
  made = bandit.tokenizer()
  for prompt, response in bandit.demonstrations(50, seed=seed):
    ids = made(prompt + response)["input_ids"]
    assert len(ids) == len(prompt + response)
    assert made.unk_token_id not in ids
    assert made.decode([*ids, made.eos_token_id], skip_special_tokens=True) == prompt + response
  assert len(made) == len(bandit.LETTERS) + 4
