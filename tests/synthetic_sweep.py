"""A sweep's directory as runs write it, with planted effects, and nothing trained."""

import json

import numpy as np

METRIC = "gold/reward"
START = 0.3  # mean reward before


def write(
  directory,
  arms,
  *,
  seeds=4,
  prompts=24,
  rounds=3,
  steps=12,
  noise=0.02,
  rng=None,
  lines=True,
  cost=True,
  text="17+5*2-8:",
):
  """Writes arms = [(varies, gain, reach)] and returns the directory.

  gain is what the arm adds to the mean reward in the end; reach is its KL in nats then. The reward
  of a prompt is the start's, the gain, and noise of the prompt, the seed, and both with the arm;
  noise is the deviation of the last, between arms at one seed.
  """
  rng = rng or np.random.default_rng(0)
  index = []
  own = {seed: rng.normal(0, 0.1, 1 + prompts) for seed in range(seeds)}  # for all arms alike
  for point, (varies, gain, reach) in enumerate(arms):
    for seed in range(seeds):
      name = ",".join(f"{point}" if not str(v).isalnum() else f"{k}={v}" for k, v in varies.items())
      name = f"{name or 'all'},seed={seed}"
      index.append(dict(name=name, point=point, seed=seed, varies=varies))
      shared, each = own[seed][0], own[seed][1:] + rng.normal(0, 0.05, prompts)
      shift = rng.normal(0, noise)
      before = START + shared + own[seed][1:]
      after = START + shared + each + gain + shift
      run = directory / name
      (run / "results").mkdir(parents=True)
      sides = {"before": (before, 0.0, 30.0), "after": (after, reach, 30.0 + 20 * gain)}
      summary = {side: dict(_summary(*values)) for side, values in sides.items()}
      if cost:
        summary["cost"] = dict(
          seconds=100.0 + point, steps=float(steps * rounds), trained_tokens=1e5 * (point + 1),
          generated_tokens=2e5, peak_memory_bytes=2**28 * (point + 1),
        )  # fmt: skip
      (run / "results" / "summary.json").write_text(json.dumps(summary))
      if lines:
        for side, (values, kl, length) in sides.items():
          rows = [_line(row, value, kl, length, text) for row, value in enumerate(values)]
          _lines(run / "results" / f"{side}.jsonl", rows)
      _lines(run / "metrics.jsonl", _rows(summary, rounds, steps, gain, reach))
      config = dict(seed=seed, loss=dict(name="pairwise.dpo", beta=0.1), varies=varies)
      (run / "config.json").write_text(json.dumps(config))
  directory.mkdir(exist_ok=True)
  (directory / "sweep.json").write_text(json.dumps(index))
  return directory


def grid(effects, *, reach=0.3):
  """Arms of two axes: {(loss, beta): gain} -> [(varies, gain, reach)]."""
  return [(dict(loss=loss, beta=beta), gain, reach) for (loss, beta), gain in effects.items()]


def _summary(rewards, kl, length):
  reward = float(rewards.mean())
  yield METRIC, reward
  yield "gold/accuracy", float((rewards > 0.5).mean())
  yield "kl", kl
  yield "kl_stderr", 0.01
  yield "length", length


def _line(row, reward, kl, length, text):
  numbers = {METRIC: reward, "gold/accuracy": float(reward > 0.5), "kl": kl, "length": length}
  responses = [
    {"kind": "greedy", "text": f"={row}\nround {text}", METRIC: reward},
    {"kind": "sampled", "text": f"={row + 1}", METRIC: reward / 2, "logprob": -3.25,
     "start_logprob": -4.5},
  ]  # fmt: skip
  return {
    "set": "written",
    "row": row,
    "prompt": f"{row}+{text}",
    **numbers,
    "responses": responses,
  }


def _rows(summary, rounds, steps, gain, reach):
  """Rewards and KL grow evenly round by round; so do the log-probs step by step."""
  before, after = summary["before"], summary["after"]
  yield {"stage": "supervised", "step": 1, "loss": 3.0, "logps/chosen": -50.0}
  for number in range(rounds + 1):
    share = number / rounds
    evaluated = {f"eval_{k}": before[k] + share * (after[k] - before[k]) for k in after}
    yield {"stage": "rounds", "step": number, **evaluated}
    for step in range(1, steps + 1) if number < rounds else ():
      done = (number * steps + step) / (rounds * steps)
      yield {
        "stage": f"round_{number}", "step": step, "loss": 0.7 - 0.3 * done, "num_tokens": 1000,
        "logps/chosen": -20.0 - 5 * done, "logps/rejected": -21.0 - 15 * done,
        "rewards/chosen": -0.5 * done, "rewards/rejected": -1.5 * done, "rewards/margins": done,
        "throughput/tokens_per_second": 1e4 + step + 1e3 * gain,
      }  # fmt: skip


def _lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
