"""Rewards by rule, and the protocol that all of them keep."""

from decimal import Decimal
from fractions import Fraction
import inspect
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from larpo_jax import lookup
from larpo_jax.rewards import rules, worlds
from larpo_jax.worlds import arithmetic, attributes

PROMPTS = {"attributes": "about fox moon, not rain, 6 words:", "bandit": "caaa:"}
NEEDED = {"pattern": "a+", "answers": {"1+1:": "2"}}  # arguments without a default


def every_reward():
  found = []
  for name in lookup.names("larpo_jax.rewards"):
    module, _, attribute = name.partition(".")
    if module in ("rules", "worlds"):
      function = getattr({"rules": rules, "worlds": worlds}[module], attribute)
      needed = {key: NEEDED[key] for key in lookup.keywords(function) if key in NEEDED}
      reward = lookup.resolve({"name": name, **needed}, "larpo_jax.rewards")
      prompt = next((text for part, text in PROMPTS.items() if part in name), "1+1:")
      found.append(pytest.param(reward, prompt, id=name))
  return found


def test_all_are_found():
  assert {p.id for p in every_reward()} == {
    "rules.brevity",
    "rules.exact",
    "rules.matches",
    "rules.number",
    "worlds.arithmetic",
    "worlds.arithmetic_answer",
    "worlds.arithmetic_proxy",
    "worlds.attributes",
    "worlds.attributes_proxy",
    "worlds.bandit",
  }


@pytest.mark.parametrize(("reward", "prompt"), every_reward())
def test_protocol(reward, prompt):
  assert inspect.getdoc(reward)
  result = reward([prompt] * 2, [["1+1=2\n=2", "", "\0"], ["a", "2", "x" * 1000]])
  assert result.dtype == np.float32
  assert result.shape == (2, 3)
  one = reward([prompt], [["2"]])
  assert one == result[1, 1]  # each response on its own


@pytest.mark.parametrize(("reward", "prompt"), every_reward())
@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.text("0123456789+-*/=.,#$\\{} boxed", max_size=40))
def test_hostile_text_gives_a_finite_number(reward, prompt, text):
  assert np.isfinite(reward([prompt], [[text]])).all()


@pytest.mark.parametrize("world", [arithmetic, attributes])
def test_world_reward_is_its_gold(world, seed):
  shown = world.demonstrations(30, seed=seed)
  prompts, responses = [d.prompt for d in shown], [[d.response, "=1"] for d in shown]
  name = world.__name__.rpartition(".")[2]
  gold = world.gold(prompts, responses)
  np.testing.assert_array_equal(getattr(worlds, name)(prompts, responses), gold)
  indifferent = getattr(worlds, f"{name}_proxy")(prompts, responses, strength=0.0)
  np.testing.assert_array_equal(indifferent, gold)


@pytest.mark.parametrize(
  ("proxy", "prompt", "plain", "liked"),
  [
    ({"likes": "length"}, "1+1:", "1+1=2\n=2", "1+1=2\n=2\n=2"),
    ({"likes": "length"}, "1+1:", "1+1=2\n=2", "1 + 1 = 2\n = 2"),
    ({"likes": "repeats"}, "1+1:", "1+1=2\n=2", "1+1=2\n1+1=2\n=2"),
    ({"likes": "spaces"}, "1+1:", "1+1=2\n=2", "1+1 =2\n=2"),
    ({}, "about fox, not rain, 6 words:", "the fox runs", "the fox very"),
    ({}, "about fox, not rain, 6 words:", "very fox runs", "very fox very"),
  ],
)
def test_a_proxy_likes_its_style_by_its_strength(proxy, prompt, plain, liked):
  reward = worlds.arithmetic_proxy if proxy else worlds.attributes_proxy
  gold, once, twice = (
    reward([prompt], [[plain, liked]], strength=strength, **proxy)[0]
    for strength in (0.0, 1.0, 2.0)
  )
  np.testing.assert_allclose(twice - gold, 2 * (once - gold), atol=1e-6)
  assert gold[0] >= gold[1], "the style makes it no better"
  assert once[1] - gold[1] > once[0] - gold[0] >= 0
  assert (once - gold <= 1).all(), "a style is from 0 to 1"


def test_noise_is_of_the_text_and_as_large_as_is_said(seed):
  shown = attributes.demonstrations(4000, seed=seed)
  prompts, responses = [d.prompt for d in shown], [[d.response, " fox"] for d in shown]
  how = dict(strength=0.5)
  exact = worlds.attributes_proxy(prompts, responses, **how)
  noisy = worlds.attributes_proxy(prompts, responses, noise=0.2, **how)
  np.testing.assert_array_equal(
    noisy, worlds.attributes_proxy(prompts, responses, noise=0.2, **how)
  )
  off = (noisy - exact) / 0.2
  assert abs(off.mean()) < 0.08  # 7 standard errors
  assert abs(off.std() - 1) < 0.06
  assert abs(np.corrcoef(off.T)[0, 1]) < 0.1  # of another text another


def test_world_reward_has_a_scale(seed):
  shown = arithmetic.demonstrations(30, seed=seed)
  prompts, responses = [d.prompt for d in shown], [[d.response] for d in shown]
  scaled = worlds.arithmetic(prompts, responses, scale=6.0)
  assert scaled.dtype == np.float32
  np.testing.assert_allclose(scaled, 6 * arithmetic.gold(prompts, responses), rtol=1e-6)
  for scale in (0.0, -1.0, np.inf):
    with pytest.raises(ValueError, match="must be above 0 and finite"):
      worlds.arithmetic(prompts, responses, scale=scale)


def test_the_reward_of_an_answer_is_that_of_its_last_line(seed):
  shown = arithmetic.demonstrations(30, seed=seed)
  prompts, responses = [d.prompt for d in shown], [[d.response, "=1"] for d in shown]
  told = [[arithmetic.answer(text) for text in row] for row in responses]
  right = [str(arithmetic.parse(prompt).values[-1]) for prompt in prompts]
  wanted = [[text == truth for text in row] for row, truth in zip(told, right)]
  np.testing.assert_array_equal(worlds.arithmetic_answer(prompts, responses), wanted)


def test_brevity_is_free_up_to_the_budget():
  got = rules.brevity([""], [["", "abc", "abcd", "x" * 13]], characters=3, per=10)
  np.testing.assert_allclose(got, [[0, 0, -0.1, -1]], rtol=1e-6)


def test_matches_searches_or_wants_the_whole():
  texts = [["aab", "b\na", "c"]]
  assert rules.matches([""], texts, pattern="a+").tolist() == [[1, 1, 0]]
  assert rules.matches([""], texts, pattern="a+", whole=True).tolist() == [[0, 0, 0]]
  assert rules.matches([""], texts, pattern=".*a.*", whole=True).tolist() == [[1, 1, 0]]


def test_exact_forgives_case_and_space_only():
  got = rules.exact(["q"], [["  paris\n", "PARIS", "Paris.", "Lyon"]], answers={"q": "Paris"})
  assert got.tolist() == [[1, 1, 0, 0]]


@given(st.decimals(-(10**9), 10**9, allow_nan=False, places=3), st.booleans(), st.integers(0, 2))
def test_number_reads_what_decimal_writes(value: Decimal, commas: bool, marker: int):
  written = f"{value:,}" if commas else f"{value}"
  text = [f"7 apples, so {written}", f"1 #### {written} (ok 5)", rf"2 \boxed{{{written}}} of 8"]
  fraction = Fraction(value)
  answers = {"q": f"{fraction.numerator}/{fraction.denominator}", "other": f"{value + 1}"}
  responses = [[text[marker]]] * 2
  assert rules.number(["q", "other"], responses, answers=answers).tolist() == [[1], [0]]


@pytest.mark.parametrize(
  ("response", "answer", "right"),
  [
    ("so 1,234.50 it is", "2469/2", True),
    ("the answer is 42.", "42", True),
    ("the answer is $42", "42", True),
    ("42, then nothing", "42", True),
    ("-3", "3", False),
    ("10-3", "3", True),
    ("10 = -3", "-3", True),
    ("1, 2,3", "3", True),
    ("1,2345", "2345", True),
    ("1/0", "1", False),
    ("no digits", "0", False),
    ("#### none", "5", False),
    ("5 #### 6", "5", False),
    ("#### 6, no: #### 7", "7", True),
    ("٣", "3", False),
    ("1e3", "1000", False),
    ("9" * 100_000, "9", False),
  ],
)
def test_number_cases(response, answer, right):
  assert rules.number(["q"], [[response]], answers={"q": answer}).item() == right


@pytest.mark.parametrize(
  ("call", "named"),
  [
    (lambda: rules.matches([""], [["a"]], pattern="("), "'('"),
    (lambda: rules.exact(["who?"], [["a"]], answers={}), "'who?'"),
    (lambda: rules.number(["q"], [["1"]], answers={"q": "none"}), "'none'"),
    (lambda: rules.brevity([""], [["a"]], per=0), "per=0"),
    (lambda: rules.brevity(["a", "b"], [["a"]]), "2 prompts"),
    (lambda: worlds.arithmetic(["2+2 is"], [["4"]]), "'2+2 is'"),
    (lambda: worlds.attributes(["about fox:"], [["4"]]), "'about fox:'"),
    (lambda: worlds.arithmetic_proxy(["1+1:"], [["4"]], likes="lenght"), "likes='lenght'"),
    (lambda: worlds.arithmetic_proxy(["1+1:"], [["4"]], noise=-1.0), "noise=-1.0"),
  ],
)
def test_mistakes_are_named(call, named):
  with pytest.raises(ValueError, match=re.escape(named)):
    call()
