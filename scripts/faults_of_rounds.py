"""Faults that scripts/mutations.py plants: in how rounds retrieve, rank, build lists and learn."""

from __future__ import annotations

from faults import Fault

STEPS, CURRICULUM, NOVELTY, NOISE, SOURCES, WORLDS, REWARDS = (
  f"tests/{name}_test.py"
  for name in (
    "step_pairs",
    "curriculum",
    "rounds_novelty",
    "noise",
    "sources",
    "worlds*",
    "*rewards",
  )
)

FAULTS = [
  # Single steps.
  Fault(
    "step pairs: the prompt ends at the first wrong step, wherever the pair is",
    "step_pairs.py",
    "prompt = pair.prompt if whole else _prefixed(session, pair, pair.located)",
    "prompt = pair.prompt if whole else _prefixed(session, pair, pair.first)",
    "step",
    STEPS,
  ),
  Fault(
    "step pairs: a step ends like an answer",
    "step_pairs.py",
    "close = [end] if whole else []",
    "close = [end]",
    "step",
    STEPS,
  ),
  Fault(
    "off by one: a misplaced pair may be where the error is",
    "step_pairs.py",
    "if j > pair.first and both",
    "if j >= pair.first and both",
    "step",
    STEPS,
  ),
  Fault(
    "step pairs: an answer that was cut counts as a wrong one",
    "step_pairs.py",
    "if ended and not is_right",
    "if not is_right",
    "step",
    STEPS,
  ),
  # Curricula, references, optimisers.
  Fault(
    "sign: a wide gap is hard",
    "difficulty.py",
    "return -np.asarray(gaps, np.float64)",
    "return np.asarray(gaps, np.float64)",
    "easy or difficulty",
    CURRICULUM,
  ),
  Fault(
    "sign: the implicit gap is that of the start over the policy",
    "difficulty.py",
    "ours - theirs for ours, theirs",
    "theirs - ours for ours, theirs",
    "difficulty",
    CURRICULUM,
  ),
  Fault(
    "reference: a stage's is the policy at the start of the round",
    "rounds.py",
    '"stage": params}[rounds.reference]',
    '"stage": begun}[rounds.reference]',
    "easy",
    CURRICULUM,
  ),
  Fault(
    "optimiser: kept moments are not passed on",
    "rounds.py",
    'course=course if rounds.optimizer == "kept" else None',
    "course=None",
    "kept",
    CURRICULUM,
  ),
  Fault(
    "optimiser: the schedule of a kept one begins anew",
    "rounds.py",
    "done=course.done + steps",
    "done=course.done",
    "kept",
    CURRICULUM,
  ),
  Fault(
    "off by one: the reference moves a step too late",
    "train_step.py",
    "jnp.where(state.step % sync.every == 0, sync.share, 0.0)",
    "jnp.where(state.step % sync.every == 1, sync.share, 0.0)",
    "moves",
    "tests/train_step_test.py",
  ),
  Fault(
    "swap: the reference keeps the share that it should take",
    "train_step.py",
    "((1 - share) * old + share * new)",
    "(share * old + (1 - share) * new)",
    "moves",
    "tests/train_step_test.py",
  ),
  # Lists, labels, what is new.
  Fault(
    "noise: the lists that are right are left out",
    "rounds.py",
    "(rounds.agreed and each.misjudged)",
    "(rounds.agreed and not each.misjudged)",
    "",
    NOISE,
  ),
  Fault(
    "memory: what is new of a merged list is lost",
    "rounds.py",
    'known._replace(importance=together("importance")) if given else known',
    "known",
    "",
    NOVELTY,
  ),
  Fault(
    "novelty: all rounds have the first one's states",
    "novelty.py",
    "states(session, start, pools[number])",
    "states(session, start, pools[0])",
    "",
    NOVELTY,
  ),
  Fault(
    "off by one: coverage leaves out the round itself",
    "coverage.py",
    "range(number + 1)",
    "range(number)",
    "",
    NOVELTY,
  ),
  # Who answers.
  Fault(
    "draws: two teachers draw alike",
    "responders.py",
    "session.key(7, number, place)",
    "session.key(7, number)",
    "teacher",
    SOURCES,
  ),
  Fault(
    "swap: the worst of people's answers are taken",
    "responders.py",
    "best = np.argsort(-np.asarray(tokens.labels)",
    "best = np.argsort(np.asarray(tokens.labels)",
    "",
    SOURCES,
  ),
  # Worlds and their rewards.
  Fault(
    "worlds: a right end excuses a broken form",
    "worlds/arithmetic.py",
    "if verdict.first_wrong is not None or (verdict.final_right and verdict.well_formed):",
    "if verdict.first_wrong is not None or verdict.final_right:",
    "",
    WORLDS,
  ),
  Fault(
    "rewards: the proxy's noise is of the text alone",
    "rewards/worlds.py",
    'f"{prompt}\\0{text}"',
    'f"{text}"',
    "",
    REWARDS,
  ),
  # Judges and their noise.
  Fault(
    "swap: both orders are read alike, so a liking for a place does not cancel",
    "rewards/judge.py",
    "wins[row, i, j] = 0.5 * (_WORTH[one] + 1.0 - _WORTH[other])",
    "wins[row, i, j] = 0.5 * (_WORTH[one] + _WORTH[other])",
    "",
    "tests/judge_test.py",
  ),
  Fault(
    "off by one: a grade of 1 is worth something",
    "rewards/judge.py",
    "return ((given - 1) / (highest - 1)).astype(np.float32)",
    "return (given / highest).astype(np.float32)",
    "",
    "tests/judge_test.py",
  ),
  Fault(
    "noise: the Gumbel noise of Bradley and Terry is normal",
    "data/noise.py",
    "return scale * rng.gumbel(size=count)",
    "return scale * rng.normal(size=count)",
    "",
    NOISE,
  ),
  Fault(
    "sign: a wide margin is misjudged more often",
    "data/noise.py",
    "np.exp(-(rewards.max() - rewards.min()) / scale)",
    "(1 - np.exp(-(rewards.max() - rewards.min()) / scale))",
    "",
    NOISE,
  ),
  Fault(
    "swap: the control of a curriculum has its order",
    "data/curriculum.py",
    "np.argsort(-difficulty",
    "np.argsort(difficulty",
    "controls",
    CURRICULUM,
  ),
  Fault(
    "novelty: a coin-flip network learns from the batches' mean flip",
    "data/novelty.py",
    "- targets[rows]) ** 2)",
    "- targets[rows].mean(0)) ** 2)",
    "coin",
    "tests/novelty_test.py",
  ),
]
