"""Faults that scripts/mutations.py plants: in what is sampled, judged, planned and swept."""

from __future__ import annotations

from faults import Fault

CURRICULUM, LISTS, LOSSES, NOISE, PLAN, POINTS, READING, RETRIEVAL, ROUNDS, WINRATE = (
  f"tests/{name}_test.py"
  for name in (
    "curriculum",
    "rso",
    "losses*",
    "noise",
    "plan",
    "sweep_points",
    "reward_runs",
    "retrieval",
    "rounds",
    "winrate",
  )
)
STEPS, TRAIN = "tests/step_pairs_test.py", "tests/train_test.py"
ESTIMATE = "tests/estimate_test.py"

FAULTS = [
  # A round that goes on where it was stopped.
  Fault(
    "resumed rounds: what a batch holds is read twice",
    "responders.py",
    "found += _read(path)\n        continue",
    "found += _read(path) * 2\n        continue",
    "stopped_in_the_middle",
    RETRIEVAL,
  ),
  Fault(
    "resumed rounds: the batches of the negatives are taken for the policy's own",
    "responders.py",
    'kept.with_name(f"{kept.name}-{done}.json")',
    'kept.with_name(f"{done}.json")',
    "stopped_in_the_middle or unrelated",
    RETRIEVAL,
  ),
  Fault(
    "resumed rounds: batches that were kept are never read",
    "responders.py",
    "if path.exists():\n        found",
    "if False:\n        found",
    "stopped_in_the_middle",
    RETRIEVAL,
  ),
  Fault(
    "resumed rounds: batches stay when the round is written",
    "retrieval.py",
    "shutil.rmtree(path, ignore_errors=True)",
    "pass",
    "stopped_in_the_middle",
    RETRIEVAL,
  ),
  # What a round learns.
  Fault(
    "rounds: every round has the learning rate of the first",
    "rounds.py",
    "* rounds.count)[number]",
    "* rounds.count)[0]",
    "learning_rate",
    ROUNDS,
  ),
  Fault(
    "rounds: nothing is evaluated within a stage",
    "rounds.py",
    "evaluate=lambda params: evaluate(params).numbers,",
    "evaluate=None,",
    "evaluated_within",
    ROUNDS,
  ),
  Fault(
    "rounds: a reference that stays moves with the rounds",
    "rounds.py",
    '{"start": start, "round": begun, "stage": params}',
    '{"start": begun, "round": begun, "stage": params}',
    "reference",
    ROUNDS,
  ),
  # Rejection sampling, noise, curricula.
  Fault(
    "rso: at a beta of 0 the worst are kept",
    "data/lists.py",
    "sorted(pool, key=lambda place: -scores[place])[:keep]",
    "sorted(pool, key=lambda place: scores[place])[:keep]",
    "zero",
    LISTS,
  ),
  Fault(
    "rso: every pass is against the best of all, not of what is left",
    "data/lists.py",
    "most = max(scores[place] for place in pool)",
    "most = max(scores)",
    "accepted",
    LISTS,
  ),
  Fault(
    "noise: one annotator judges everything",
    "data/noise.py",
    "rate=rates[rng.integers(len(rates))]",
    "rate=rates[0]",
    "annotators",
    NOISE,
  ),
  Fault(
    "curriculum: random stages are the easy ones first",
    "data/curriculum.py",
    "return [parts[place] for place in rng.permutation(stages)]",
    "return parts",
    "any_order",
    CURRICULUM,
  ),
  # Who wins.
  Fault(
    "sign: the start wins over what was learnt",
    "evaluators/winrate.py",
    "float(np.sign(float(after) - float(before)))",
    "float(np.sign(float(before) - float(after)))",
    "rewards_become",
    WINRATE,
  ),
  Fault(
    "win rates: the start is compared with other prompts",
    "evaluation.py",
    'rows[line["row"]] for line in wrote]',
    'rows[line["row"]] for line in wrote[::-1]]',
    "same_prompts",
    WINRATE,
  ),
  # Paths of reward against KL, crossed sweeps, plans.
  Fault(
    "--cross: only the first value of a grid is taken",
    "sweep/points.py",
    'values = [_literal(each) for each in listed.split(",")]',
    'values = [_literal(each) for each in listed.split(",")][:1]',
    "crossed",
    POINTS,
  ),
  Fault(
    "plan: a reward model counts for nothing",
    "plan/rounds.py",
    "return float(sum(x.size * x.dtype.itemsize",
    "return 0.0 * float(sum(x.size * x.dtype.itemsize",
    "planned_with_the_models",
    PLAN,
  ),
  Fault(
    "plan: keys and values of one response a prompt",
    "estimate.py",
    "tokens = work.prompts * (work.prompt + work.responses * work.response)",
    "tokens = work.prompts * (work.prompt + work.response)",
    "sampling",
    ESTIMATE,
  ),
  Fault(
    "reading: a model's own settings come before those that are given",
    "data/reading.py",
    "return known | {name: value for name, value in given.items() if value is not None}",
    "return {name: value for name, value in given.items() if value is not None} | known",
    "",
    "tests/reward*_test.py",
  ),
  # Losses.
  Fault(
    "beta-DPO: with init='first' the first batch counts a tenth",
    "losses/batchwise.py",
    'begins = (before["step"] == 0) & (init == "first")',
    'begins = (before["step"] == 1) & (init == "first")',
    "beta_dpo",
    LOSSES,
  ),
  Fault(
    "beta-DPO: the widest gaps are kept where they should be dropped",
    "losses/batchwise.py",
    '"widest": -gap, "narrowest": gap}',
    '"widest": gap, "narrowest": -gap}',
    "beta_dpo",
    LOSSES,
  ),
  Fault(
    "beta-DPO: gaps are in nats where rewards are asked for",
    "losses/batchwise.py",
    '{"nats": 1.0, "rewards": beta}',
    '{"nats": 1.0, "rewards": 1.0}',
    "beta_dpo",
    LOSSES,
  ),
  Fault(
    "sign: smoothed labels are those of the robust loss",
    "losses/wrappers.py",
    "return (1 - epsilon) * kept + epsilon * flipped, metrics",
    "return (1 - epsilon) * kept - epsilon * flipped, metrics",
    "smoothed",
    LOSSES,
  ),
  Fault(
    "resumed rounds: continuations that were sampled are sampled again",
    "responders.py",
    "if path.exists():",
    "if path.exists() and done < 0:",
    "stopped_between_batches",
    STEPS,
  ),
  # How the implicit reward ranks unseen answers.
  Fault(
    "held-out answers: the policy's own, so that both ends of a run rank others",
    "evaluation.py",
    "session.sample(start, ",
    "session.sample(params, ",
    "ranks_answers_of_the_start",
    TRAIN,
  ),
  Fault(
    "held-out answers: the policy is its own reference",
    "evaluation.py",
    "else session.score(session.whole(start), batch)",
    "else policy",
    "ranks_answers_of_the_start",
    TRAIN,
  ),
  Fault(
    "held-out answers: where all are worth the same, there is a rank all the same",
    "evaluation.py",
    'ordered = metrics.pop("ordered")',
    'ordered = metrics.pop("ordered") * 0.0 + 1.0',
    "ranks_answers_of_the_start",
    TRAIN,
  ),
]
