"""The arithmetic world: its checker against an evaluation that shares no code with it."""

import ast
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from larpo_jax.worlds import arithmetic

WORLD = st.builds(
  lambda seed, index, steps: arithmetic.problems(1, seed=seed, steps=steps, start=index)[0],
  st.integers(0, 2**32),
  st.integers(0, 10**6),
  st.integers(1, 8),
)


def evaluate(text: str) -> int:
  """Python's own parser on one binary expression or number."""
  node = ast.parse(text, mode="eval").body
  if isinstance(node, ast.Constant):
    return node.value
  left, right = evaluate(ast.unparse(node.left)), evaluate(ast.unparse(node.right))
  return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[type(node.op)]


def running(prompt: str) -> list[int]:
  """The values on the way, from the prompt's text: one bracket pair around each prefix."""
  tokens = re.findall(r"\d+|[-+*]", prompt)
  values = [int(tokens[0])]
  for sign, operand in zip(tokens[1::2], tokens[2::2], strict=True):
    values.append(evaluate(f"{values[-1]}{sign}{operand}"))
  return values


def test_problems_and_solutions_agree_with_python(seed):
  drawn = arithmetic.problems(3000, seed=seed, steps=(1, 8))
  assert {len(problem.operations) for problem in drawn} == set(range(1, 9))
  for problem in drawn:
    prompt, solution = arithmetic.prompt(problem), arithmetic.solution(problem)
    values = running(prompt)
    assert list(problem.values) == values, prompt
    assert all(0 <= value < 100 for value in values), prompt
    *steps, answer = solution.split("\n")
    assert [evaluate(step.split("=")[0]) for step in steps] == values[1:], solution
    assert [int(step.split("=")[1]) for step in steps] == values[1:], solution
    assert answer == f"={values[-1]}"
    assert arithmetic.parse(prompt) == problem
    verdict = arithmetic.check(prompt, solution)
    assert verdict == arithmetic.Verdict(len(steps), len(steps), None, True, True), solution
  assert arithmetic.gold([prompt], [[solution]]) == 1.0


def independent_steps_right(prompt: str, response: str) -> int:
  """How many leading lines state the asked step truly, by Python's evaluation of the line."""
  tokens, values = re.findall(r"\d+|[-+*]", prompt), running(prompt)
  asked = list(zip(values, tokens[1::2], tokens[2::2]))
  right = 0
  for line, (value, sign, operand) in zip(response.split("\n"), asked):
    left, equals, result = line.replace(" ", "").partition("=")
    if not equals or not re.fullmatch(r"[0-9]+", result) or left != f"{value}{sign}{operand}":
      break
    if re.search(r"[0-9] +[0-9]", line) or result != str(int(result)):
      break
    if int(result) != evaluate(left):
      break
    right += 1
  return right


def test_every_single_character_corruption_is_caught_or_is_a_space(seed):
  for problem in arithmetic.problems(12, seed=seed, steps=(1, 5)):
    prompt, solution = arithmetic.prompt(problem), arithmetic.solution(problem)
    for place in range(len(solution) + 1):
      for character in [*arithmetic.ALPHABET, "x", "\r", "٣", "\0", ""]:
        inserted = solution[:place] + character + solution[place:]
        for corrupt in (inserted, solution[:place] + character + solution[place + 1 :]):
          verdict = arithmetic.check(prompt, corrupt)
          assert verdict.steps_right == independent_steps_right(prompt, corrupt), corrupt
          same = corrupt.replace(" ", "").removesuffix("\n") == solution
          perfect = verdict.first_wrong is None and verdict.final_right and verdict.well_formed
          if perfect:
            assert same, (solution, corrupt)  # nothing but spaces, none of them inside a number
          elif same:
            assert re.search(r"\d \d", corrupt), (solution, corrupt)


def test_gold_rises_with_each_right_step_and_most_with_the_answer(seed):
  for problem in arithmetic.problems(200, seed=seed, steps=(2, 8)):
    prompt, lines = arithmetic.prompt(problem), arithmetic.solution(problem).split("\n")
    # step lines replaced from some place on by lines of the same shape that are wrong
    wrong = [re.sub(r"=(\d)", lambda m: f"={9 - int(m[1])}", line) for line in lines]
    ladder = ["\n".join(lines[:k] + wrong[k:]) for k in range(len(lines) + 1)]
    (rewards,) = arithmetic.gold([prompt], [ladder])
    assert np.all(np.diff(rewards) > 0), (ladder, rewards)
    assert np.argmax(np.diff(rewards)) == len(lines) - 1
    assert rewards[-1] == 1.0
    prefixes = ["\n".join(lines[:k]) for k in range(len(lines) + 1)]
    (rewards,) = arithmetic.gold([prompt], [prefixes])
    assert np.all(np.diff(rewards) > 0)
    assert rewards[0] == 0.0
    (padded,) = arithmetic.gold([prompt], [["\n".join(lines).replace("=", " = "), prefixes[-1]]])
    assert padded[0] < padded[1]  # spaces are not wrong, but they are longer


def test_demonstrations_slip_as_often_as_asked_and_then_go_on_faithfully(seed):
  shown = arithmetic.demonstrations(2000, seed=seed, slip=0.3)
  verdicts = [arithmetic.check(d.prompt, d.response) for d in shown]
  assert all(verdict.well_formed for verdict in verdicts)
  wrong = [verdict.first_wrong for verdict in verdicts if verdict.first_wrong is not None]
  assert 0.25 < len(wrong) / len(shown) < 0.35  # 5 standard deviations either way
  assert set(wrong) == {0, 1, 2}
  assert all((v.first_wrong is None) == v.final_right for v in verdicts)
  for demonstration in shown:  # at most one line whose arithmetic is false
    *steps, answer = demonstration.response.split("\n")
    false = [step for step in steps if evaluate(step.split("=")[0]) != int(step.split("=")[1])]
    assert len(false) <= 1, demonstration
    assert answer == "=" + steps[-1].split("=")[1]
  assert all(
    arithmetic.gold([d.prompt], [[d.response]]) == 1
    for d in arithmetic.demonstrations(50, seed=seed, slip=0.0)
  )


@pytest.mark.parametrize(
  ("response", "verdict"),
  [
    ("4+3=7\n7*2=14\n=14\n", (2, None, True, True)),
    ("4+3=7\n7*2=14\n=14\n=14", (2, None, False, False)),  # one answer, not a choice of two
    ("4+3=7\n7*2=14\n=13\n=14", (2, None, False, False)),
    ("4+3=7\n7*2=14\n14-1=13\n=14", (2, None, True, False)),
    ("4+3=7\n7*2=14", (2, None, False, False)),
    ("4+3=7\n=14", (1, 1, True, False)),
    ("=14", (0, 0, True, False)),
    ("4+3=8\n8*2=16\n=16", (0, 0, False, True)),
    ("4+3=8\n7*2=14\n=14", (0, 0, True, True)),  # right from a wrong step: no credit for it
    ("3+4=7\n7*2=14\n=14", (0, 0, True, True)),  # true, but not the step asked for
    ("so\n4+3=7\n7*2=14\n=14", (0, 0, True, False)),
  ],
)
def test_verdicts_written_by_hand(response, verdict):
  assert arithmetic.check("4+3*2:", response) == arithmetic.Verdict(2, *verdict)


@pytest.mark.parametrize(
  ("response", "place"),
  [
    ("4+3=7\n7*2=14\n=14", None),
    ("4+3=7\n7*2=14\n=14\n", None),
    ("4+3=7\n7*2=14\n=15", 2),
    ("4+3=7\n7*2=14\n=14\n=14", 3),
    ("4+3=7\n7*2=14", 2),
    ("4+3=7\n=14", 1),
    ("4+3=8\n8*2=16\n=16", 0),
    ("", 0),
  ],
)
def test_the_first_wrong_step_is_a_line_or_the_one_that_is_missing(response, place):
  assert arithmetic.first_wrong("4+3*2:", response) == place


@settings(max_examples=300, deadline=None)
@given(WORLD, st.text() | st.text(arithmetic.ALPHABET, max_size=60))
def test_steps_are_the_response_and_what_comes_before_the_first_wrong_one_is_right(problem, text):
  prompt = arithmetic.prompt(problem)
  for response in (
    text,
    arithmetic.solution(problem) + text,
    arithmetic.styled(arithmetic.solution(prompt)),
  ):
    steps, place = arithmetic.steps(response), arithmetic.first_wrong(prompt, response)
    assert "".join(steps) == response
    verdict = arithmetic.check(prompt, response)
    ((progress,),) = arithmetic.progress([prompt], [[response]])
    assert progress == pytest.approx(verdict.steps_right / verdict.steps)
    if place is None:
      assert verdict.final_right
      assert verdict.well_formed
      assert progress == 1
    else:
      begun = "".join(steps[:place])
      assert arithmetic.check(prompt, begun).steps_right == min(place, verdict.steps)
      assert place <= len(steps)
      assert (place > verdict.steps) == (arithmetic.check(prompt, begun).final_right)


def test_the_rewritten_solution_is_right_step_by_step_and_in_no_demonstration(seed):
  for prompt, response in arithmetic.demonstrations(100, seed=seed, slip=0.0, steps=(1, 8)):
    rewritten = arithmetic.styled(arithmetic.solution(prompt))
    assert arithmetic.first_wrong(prompt, rewritten) is None
    assert rewritten.replace(" ", "") == response
    both = zip(arithmetic.steps(rewritten), arithmetic.steps(response), strict=True)
    assert all(new != old for new, old in both)


@pytest.mark.parametrize(
  ("response", "answer"),
  [
    ("4+3=7\n7*2=14\n=14", "14"),
    (" = 9 \n", "9"),
    ("4+3=7\n=7\n7*2=14", "7"),
    ("=1\n=1", None),  # two answers are none, alike or not
    ("=07", None),
    ("4+3=7", None),
    ("", None),
  ],
)
def test_the_answer_is_the_one_line_that_states_it(response, answer):
  assert arithmetic.answer(response) == answer


@settings(max_examples=300, deadline=None)
@given(WORLD, st.text() | st.text(arithmetic.ALPHABET, max_size=60))
def test_no_response_raises_and_a_good_reward_means_a_right_answer(problem, response):
  prompt = arithmetic.prompt(problem)
  verdict = arithmetic.check(prompt, response)
  ((reward,),) = arithmetic.gold([prompt], [[response]])
  assert 0 <= reward <= 1
  assert verdict.final_right or reward <= 0.5
  assert verdict.final_right == (arithmetic.answer(response) == str(problem.values[-1]))
  assert (verdict.first_wrong is None) == (verdict.steps_right == verdict.steps)


@pytest.mark.parametrize(
  "response", ["=" + "9" * 100_000, "9" * 100_000, "\n" * 100_000, "1+1=" * 50_000, " " * 100_000]
)
def test_long_hostile_responses_are_quick_and_worth_little(response):
  assert arithmetic.gold(["1+1:"], [[response]]) <= 0.1


@settings(max_examples=300, deadline=None)
@given(st.text() | st.from_regex(r"[0-9]{1,3}([-+*][0-9]){1,4}:", fullmatch=True))
def test_a_prompt_is_a_problem_or_a_value_error(text):
  try:
    problem = arithmetic.parse(text)
  except ValueError:
    return
  assert arithmetic.prompt(problem) == text.strip()
  assert list(problem.values) == running(text.strip())


@settings(max_examples=300, deadline=None)
@given(WORLD, st.text() | st.text(arithmetic.ALPHABET, max_size=60))
def test_a_style_changes_spaces_alone_and_no_verdict(problem, response):
  for text in (response, arithmetic.solution(problem)):
    styled = arithmetic.styled(text)
    assert styled.replace(" ", "") == text.replace(" ", "")
    assert arithmetic.styled(styled) == styled
    assert arithmetic.check(problem, styled) == arithmetic.check(problem, text)
  mixed = text.split("\n")[0] + "\n" + styled.split("\n", 1)[1]
  steps = len(problem.operations)
  found = arithmetic.style(["?"], [[text, styled, mixed]])
  np.testing.assert_allclose(found, [[0, 1, steps / (steps + 1)]], rtol=1e-6)


def test_another_draw_answers_the_same_problems_anew(seed):
  how = dict(seed=seed, slip=0.5, hasty=0.2)
  first, again, other = (arithmetic.demonstrations(50, draw=n, **how) for n in (0, 0, 1))
  assert first == again == arithmetic.demonstrations(50, **how)
  assert [each.prompt for each in first] == [each.prompt for each in other]
  assert first != other
