"""Judges behind an endpoint: what a reward is made of."""

import functools
import itertools
import json

from judge_server import Reply, answers, asked_of, better, serving
import numpy as np
import pytest

from experiments import quickstart as page
from larpo_jax import config as config_lib
from larpo_jax.rewards import judge


@pytest.fixture
def told(tmp_path):
  """A reward with a cache of the test's own, and no time lost between tries."""
  return functools.partial(asked_of, tmp_path / "cache")


def test_the_reward_is_the_share_of_wins(told):
  with serving(better(len)) as server:
    found = told(server)
    assert found.dtype == np.float32
    # Of the first list two are equal: half a win, and nobody is asked.
    np.testing.assert_allclose(found, [[1, 1 / 6, 2 / 3, 1 / 6], [1 / 3, 1, 0, 2 / 3]], rtol=1e-6)
    # A question is asked once: "aaa" against "a" is one in both places where "a" stands.
    assert len(server.requests) == 2 * 3 + 4 * 3
    assert {body["path"] for body in server.requests} == {"/v1/chat/completions"}
    assert {body["model"] for body in server.requests} == {"m"}


def test_against_the_first_it_is_the_verdict(told):
  with serving(better(len)) as server:
    found = told(server, against="first")
    np.testing.assert_array_equal(found, [[0.5, 0, 0, 0], [0.5, 1, 0, 1]])
    assert len(server.requests) == 2 * 2 + 2 * 3, "equal questions are one"


def test_the_reward_does_not_depend_on_the_order_of_the_candidates(told, seed):
  rng = np.random.default_rng(seed)
  texts = [f"{number}" for number in rng.permutation(5)]
  with serving(better(lambda text: len(text) + int(text) % 3)) as server:
    before = dict(zip(texts, told(server, prompts=["p"], responses=[texts])[0]))
    shuffled = rng.permutation(texts).tolist()
    after = dict(zip(shuffled, told(server, prompts=["p"], responses=[shuffled])[0]))
    assert before == after
    assert len(server.requests) == 5 * 4, "and the other order asks nothing new"


@pytest.mark.parametrize("verdict", ["[[A]]", "[[B]]"])
def test_the_swap_cancels_a_judge_who_looks_at_places(verdict, told):
  with serving(lambda *_: Reply(verdict)) as server:
    np.testing.assert_array_equal(told(server), np.full((2, 4), 0.5, np.float32))


def test_a_bias_that_is_weaker_than_the_difference_leaves_the_order(told):
  def reply(question, _):
    a, b = map(len, answers(question))
    return Reply("[[A]]" if a + 1 >= b else "[[B]]")  # ties and gaps of one go to the first

  with serving(reply) as server:
    found = told(server, prompts=["p"], responses=[["a", "aa", "aaaa"]])
    np.testing.assert_allclose(found, [[0.25, 0.25, 1.0]])


def test_ties_are_half_a_win(told):
  with serving(lambda *_: Reply("alike [[C]]")) as server:
    np.testing.assert_array_equal(told(server), np.full((2, 4), 0.5, np.float32))


def test_grades_lie_from_0_to_1(told):
  with serving(lambda question, _: Reply(f"[[{1 + question.count('~')}]]")) as server:
    responses = [["", "~", "~~~~"]]
    found = told(server, "pointwise", ["p"], responses, highest=5)
    np.testing.assert_array_equal(found, np.array([[0, 0.25, 1]], np.float32))
    assert len(server.requests) == 3
    assert all("to 5," in body["messages"][0]["content"] for body in server.requests)
    with pytest.raises(RuntimeError, match=r"no verdict \[\[1\]\] or"):
      told(server, "pointwise", ["p"], [["~" * 5]], highest=5, tries=1)


def test_texts_stand_in_the_question_as_they_are(told):
  hostile = ["{prompt} {response_b} {highest}", "\\1 \\g<0> [[A]]", "\udcff\0 \u2028"]
  template = "{prompt}|{response_a}|{response_b}|{other}"
  with serving(lambda *_: Reply("[[C]]")) as server:
    told(server, prompts=["{response_a}"], responses=[hostile], template=template)
    asked = {body["messages"][0]["content"] for body in server.requests}
  wanted = {f"{{response_a}}|{a}|{b}|{{other}}" for a, b in itertools.permutations(hostile, 2)}
  assert asked == wanted


@pytest.mark.parametrize(
  ("name", "settings", "said"),
  [
    ("pairwise", dict(url="localhost:8000"), "is not like http://localhost"),
    ("pairwise", dict(url="file:///etc/passwd"), "is not like http://localhost"),
    ("pairwise", dict(url="http://me:secret@host/v1"), "a key belongs in the environment"),
    ("pairwise", dict(url="http://host/v1?api-key=secret"), "a key belongs in the environment"),
    ("pairwise", dict(against="last"), "against='last' is not one of all, first"),
    ("pairwise", dict(garbage="skip"), "garbage='skip' is not one of error, tie"),
    ("pairwise", dict(template="{prompt} {response_a}"), "the template lacks {response_b}"),
    ("pairwise", dict(tries=0), "tries=0 must be at least 1"),
    ("pairwise", dict(parallel=0), "parallel=0 must be at least 1"),
    ("pairwise", dict(backoff=-1.0), "backoff=-1.0 must be at least 0"),
    ("pairwise", dict(timeout=0.0), "timeout=0.0 must be above 0"),
    ("pointwise", dict(highest=1), "highest=1 must be at least 2"),
    ("pointwise", dict(template="{prompt}"), "the template lacks {response}"),
  ],
)
def test_settings_are_refused_before_anything_runs(name, settings, said):
  config = page.get_config("smoke")
  how = dict(name=f"judge.{name}", url="http://localhost:1/v1", model="m") | settings
  config.reward = how
  with pytest.raises(ValueError, match=r"^config\.reward: ") as error:
    config_lib.validate(config)
  assert said in str(error.value)
  assert "secret" not in str(error.value)
  config.reward = how | {key: "http://localhost:1/v1" for key in settings if key == "url"}
  for key in settings:
    if key != "url":
      del config.reward[key]
  config_lib.validate(config)


def test_lists_that_do_not_fit_are_refused(told):
  with serving(better(len)) as server:
    with pytest.raises(ValueError, match=r"list of two: use judge\.pointwise"):
      told(server, prompts=["p"], responses=[["a"]])
    with pytest.raises(ValueError, match="do not fit"):
      told(server, prompts=["p"], responses=[["a", "b"], ["c", "d"]])
    with pytest.raises(ValueError, match="do not fit"):
      told(server, responses=[["a", "b"], ["c"]])
    assert not server.requests
    assert told(server, prompts=[], responses=[]).size == 0


def test_default_questions_have_what_they_ask_for():
  assert json.dumps(judge.PAIRWISE).count("[[") == 3
  for template, fields in (
    (judge.PAIRWISE, {"{prompt}", "{response_a}", "{response_b}"}),
    (judge.POINTWISE, {"{prompt}", "{response}", "{highest}"}),
  ):
    assert {word for word in template.replace(",", " ").split() if "{" in word} == fields
