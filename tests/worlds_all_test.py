"""What every world promises: problems by seed and split, exact judges, a tokenizer of its texts."""

import pkgutil
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from transformers import AutoTokenizer

from larpo_jax import worlds

SIZES = {"arithmetic": "steps", "attributes": "topics"}  # what a problem has one or more of
EVERY = [worlds.find(name) for name in SIZES]
every_world = pytest.mark.parametrize("world", EVERY, ids=list(SIZES))


def sized(world, size):
  return {SIZES[world.__name__.rpartition(".")[2]]: size}


def test_every_world_is_tested_here():
  found = {module.name for module in pkgutil.iter_modules(worlds.__path__)}
  # A bandit's problems have no size, and few answers: worlds_bandit_test.
  assert {name for name in found if not name.startswith("_")} == {*SIZES, "bandit"}
  with pytest.raises(ValueError, match="no world '_splits'; there are: arithmetic, attributes"):
    worlds.find("_splits")


@every_world
def test_splits_never_share_a_problem(world, seed):
  drawn = {
    split: set(
      world.problems(1500, seed=seed, split=split, **sized(world, 1))
      + world.problems(500, seed=seed + 1, split=split, **sized(world, (1, 3)))
    )
    for split in world.SPLITS
  }
  assert min(map(len, drawn.values())) > 100  # of size one there are few, so that all recur
  for split, problems in drawn.items():
    assert {world.split_of(problem) for problem in problems} == {split}
    for other in set(drawn) - {split}:
      assert not problems & drawn[other]


@every_world
def test_seed_and_index_decide_everything(world, seed):
  whole = world.problems(50, seed=seed)
  assert world.problems(20, seed=seed, start=30) == whole[30:]
  assert world.problems(50, seed=seed + 1) != whole
  assert len(set(world.problems(500, seed=seed))) > 450
  shown = world.demonstrations(50, seed=seed)
  assert world.demonstrations(20, seed=seed, start=30) == shown[30:]
  assert [d.prompt for d in shown] == [world.prompt(problem) for problem in whole]


@every_world
def test_the_solution_is_the_best_there_is(world, seed):
  for problem in world.problems(200, seed=seed, **sized(world, (1, 4))):
    prompt, solution = world.prompt(problem), world.solution(problem)
    assert world.parse(prompt) == problem
    assert world.solution(prompt) == solution
    assert world.gold([prompt], [[solution]]) == 1
    assert world.accuracy([prompt], [[solution]]) == 1
    assert world.answer(solution) is not None


@every_world
def test_demonstrations_are_better_than_nothing_and_leave_something_to_gain(world, seed):
  shown = world.demonstrations(300, seed=seed, **sized(world, (1, 4)))
  prompts, responses = [d.prompt for d in shown], [[d.response, ""] for d in shown]
  gold = world.gold(prompts, responses)
  assert gold.shape == (300, 2)
  assert gold.dtype == np.float32
  assert (gold[:, 0] > gold[:, 1]).all()
  assert (gold[:, 1] == 0).all()
  assert 0 < world.accuracy(prompts, responses)[:, 0].mean() < 1
  assert 0.5 < gold[:, 0].mean() < 1


@every_world
def test_one_answer_has_one_accuracy(world, seed):
  shown = world.demonstrations(40, seed=seed)
  texts = [shown[n].response for n in range(10)]
  rewritten = [f" {text.replace(' ', '  ')} " for text in texts]
  prompts = [d.prompt for d in shown]
  plain = world.accuracy(prompts, [texts] * 40)
  np.testing.assert_array_equal(plain, world.accuracy(prompts, [rewritten] * 40))
  assert [world.answer(text) for text in texts] == [world.answer(text) for text in rewritten]
  assert 0 < plain.sum() < plain.size


@every_world
def test_unrelated_problems_have_another_size(world, seed):
  count = lambda problem: len(getattr(problem, "operations", None) or problem.topics)  # noqa: E731
  for size, other in ((3, 2), (1, 2), ((1, 3), 4), ((2, 4), 1)):
    drawn = world.unrelated(20, seed=seed, **sized(world, size))
    assert {count(problem) for problem in drawn} == {other}
    assert {count(problem) for problem in world.problems(20, seed=seed, **sized(world, size))} != {
      other
    }


@every_world
@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(" abefox,:not1298moonrawds=+\n", max_size=60))
def test_no_response_raises_and_a_prompt_is_a_problem_or_a_value_error(world, text):
  prompt = world.prompt(world.problems(1, seed=0)[0])
  assert 0 <= world.gold([prompt], [[text]]) <= 1
  assert world.accuracy([prompt], [[text]]) in (0, 1)
  if world.answer(text) is None:
    assert world.accuracy([prompt], [[text]]) == 0
  try:
    problem = world.parse(text)
  except ValueError:
    return
  assert world.prompt(problem) == text.strip()


@every_world
def test_wrong_arguments_are_named(world):
  name = next(iter(sized(world, 1)))
  for arguments, named in (
    (dict(split="tset"), "tset"),
    ({name: 0}, f"{name}=0"),
    ({name: (3, 2)}, f"{name}=(3, 2)"),
    ({name: 17}, f"{name}=17"),
    (dict(seed=-1), "seed=-1"),
    (dict(start=-1), "start=-1"),
  ):
    with pytest.raises(ValueError, match=re.escape(named)):
      world.problems(1, **{"seed": 0, **arguments})
  with pytest.raises(ValueError, match=re.escape("slip=1.5")):
    world.demonstrations(1, seed=0, slip=1.5)


@every_world
def test_tokenizer_survives_disk_and_gives_the_text_back(world, seed, tmp_path):
  made = world.tokenizer()
  made.save_pretrained(tmp_path)
  loaded = AutoTokenizer.from_pretrained(tmp_path)
  for prompt, response in world.demonstrations(50, seed=seed, **sized(world, (1, 4))):
    text = f"{prompt}{response}"
    ids = loaded(text)["input_ids"]
    assert ids == made(text)["input_ids"]
    apart = [loaded(part, add_special_tokens=False)["input_ids"] for part in (prompt, response)]
    assert ids == apart[0] + apart[1]
    assert loaded.unk_token_id not in ids
    assert loaded.decode(ids) == text
    assert loaded.decode([*ids, loaded.eos_token_id], skip_special_tokens=True) == text
  assert len({loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id}) == 3
  assert len(loaded) < 64
