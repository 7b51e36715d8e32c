"""One loss under TRL's name and under ours, on the same checkpoint and rows: how far apart."""

import functools
from pathlib import Path

from draws import lists
import jax
import numpy as np
import optax
from tiny_models import SIZES
import trl_reference

from larpo_jax import objective, sharding, train_step
from larpo_jax.models import huggingface
from larpo_jax.scorers import tokens
from larpo_jax.types import Batch

STEPS = 3
PROMPT, RESPONSE = 6, 9  # most tokens; short, so that sums are small and their rounding too
# AdamW as TRL's, but for two numbers. optax corrects the bias by 1 - beta2 in float32, where
# 1 - 0.999 is 1.3e-5 too small, so its first steps are 6.6e-6 shorter than PyTorch's: this beta 2
# is exact. And where a gradient is a sum that cancels, what is left is rounding, which an epsilon
# of 1e-8 makes a whole step in a direction of its own: this one is above it.
BETAS, EPSILON = (0.9, 1 - 2**-10), 1e-4
ADAM = optax.scale_by_adam(*BETAS, eps=EPSILON)
COUNTERS = ("num_tokens",)  # ours is of the responses of one batch, TRL's of all sequences so far


def relative(found, expected, scale=0.0):
  """|found - expected| relative to expected, or to scale where that is larger."""
  return float(abs(found - expected) / max(abs(expected), scale, 1e-30))


def scales(case):
  """What metrics that are differences of log-probs are relative to: 10 nats of each response.

  A reward is beta times the difference of two sums of some 30 nats, whose rounding stays when the
  difference is small, and so is the mean of rewards of both signs.
  """
  rewards = ("rewards/chosen", "rewards/rejected", "rewards/margins")
  return {"kl": 10.0} | dict.fromkeys(rewards, 10.0 * case.beta)


def errors(case, found, expected):
  """{name: relative error} of everything that both report."""
  found = dict(found)
  if case.trainer == "KTO":  # where both kinds are in a batch, a mean over prompts is of both
    for kind in ("chosen", "rejected"):
      for name in ("rewards", "logps"):
        found[f"{name}/{kind}"] = found[f"{name}/{kind}"] / found[f"share/{kind}"]
  ours = {name: case.names.get(name, name) for name in expected}
  left_out = (*COUNTERS, *case.differs)
  both = [name for name in expected if ours[name] in found and name not in left_out]
  scale = scales(case)
  return {n: relative(float(found[ours[n]]), expected[n], scale.get(n, 0.0)) for n in both}


# On given log-probs, without a model.


def draw(case, seed, spread):
  """(policy, reference, batch) of random log-probs: pairs, or responses with labels for KTO."""
  policy, reference, batch = lists(seed, K=2, R=RESPONSE, tied=False, ragged=False, spread=spread)
  count, _, width = policy.mask.shape
  shortest = 1 if case.ragged else width
  length = np.random.default_rng(seed).integers(shortest, width + 1, (count, 2, 1))
  mask = (np.arange(width) < length).astype(np.float32)
  label = np.tile(np.float32([1, 0]), (count, 1))
  if case.trainer == "KTO":
    label[1::2, 0] = -1
  batch = batch.replace(label=label, response_mask=mask)
  cut = lambda x: x.replace(token=x.token * mask, mask=mask, kl=None)  # noqa: E731
  return cut(policy), cut(reference), batch


@functools.cache
def whole(case):
  """(value, metrics), slope of the loss in log-probs of one shape, jitted: a compilation a case."""
  kernels = objective.resolve(case.spec)

  def mean(token, policy, reference, batch):
    value, (metrics, _) = objective.mean(kernels, policy.replace(token=token), reference, batch)
    return value, metrics

  jitted = jax.jit(jax.value_and_grad(mean, has_aux=True))
  text = ("prompt", "prompt_mask", "response", "span", "score", "importance")
  bare = lambda batch: batch.replace(**dict.fromkeys(text))  # noqa: E731
  return lambda policy, reference, batch: jitted(policy.token, policy, reference, bare(batch))


def on_logprobs(case, seed, spread):
  """{name: relative error} on random log-probs, the gradient's relative to its largest entry."""
  policy, reference, batch = draw(case, seed, spread)
  (value, metrics), slope = whole(case)(policy, reference, batch)
  given = (policy, reference, batch.label, dict(case.settings))
  expected, wanted, logged = trl_reference.loss(case.trainer, *given)
  found = errors(case, {"loss": value, **metrics}, {"loss": expected, **logged})
  if case.ragged:  # TRL's entropy is then the mean over the tokens of the batch, ours over prompts
    found.pop("entropy", None)
  # Where every sigmoid is flat, what is left of a gradient is rounding: hence a least size.
  size = max(np.max(np.abs(wanted)), 0.01 * case.beta)
  found["gradient"] = float(np.max(np.abs(slope - wanted)) / size)
  return found


# Training.


class Setting:
  """A policy and another reference as checkpoints, and rows that all cases of a kind share."""

  def __init__(self, directory, seed):
    self.directory, self.seed = Path(directory), seed % 2**31
    self.folders = checkpoints(self.directory, self.seed)
    self.mesh = sharding.make_mesh({"data": -1})  # every device there is: 8 in tests
    load = lambda path: huggingface.load(path, mesh=self.mesh, rules={})[:2]  # noqa: E731
    (self.model, self.params), (_, self.reference) = map(load, self.folders)
    local = lambda tree: jax.device_put(tree, jax.devices()[0])  # noqa: E731
    self.local, self.local_reference = local(self.params), local(self.reference)
    self.done = {}

  def rows(self, ragged, prompt, labelled):
    """Rows of token ids: prompt, chosen, rejected; with labels, the chosen one is the response.

    Chosen and rejected together are always of one length: then the mean over tokens that TRL logs
    as the entropy is the mean over prompts.
    """
    rng, count, total = np.random.default_rng(self.seed), 8, RESPONSE - 1
    tokens = lambda n: rng.integers(3, SIZES["vocab_size"], n).tolist()  # noqa: E731
    lengths = rng.integers(1, total, count) if ragged else np.full(count, total // 2)
    return [
      {
        "prompt": tokens(rng.integers(1, prompt + 1)),
        "chosen": tokens(n),
        "rejected": tokens(total - n),
        "label": (i % 3 > 0) if labelled else True,
      }
      for i, n in enumerate(lengths)
    ]

  def both(self, case):
    """(what TRL logs, what we do, the batch): a dict a step; run once a case."""
    if case not in self.done:
      self.done[case] = self._both(case)
    return self.done[case]

  def _both(self, case):
    labelled = case.trainer == "KTO"
    rows = self.rows(case.ragged, case.prompt, labelled)
    expected = trl_reference.train(
      case.trainer,
      dict(case.settings),
      *self.folders,
      [_text(row, labelled) for row in rows],
      self.directory / "out",
      steps=STEPS,
      rate=case.rate,
      betas=BETAS,
      epsilon=EPSILON,
    )
    batch = _batch(rows, labelled)
    return expected, self._stepped(case, batch), batch

  def _stepped(self, case, batch):
    """Our three steps, as micro_batches.coupled takes them: log-probs, the loss's slope in them,
    and one product with their Jacobian. So one compilation of the model serves every loss."""
    mean, params, logged = whole(case), self.local, []
    state, reference = self.optimizer_state, self.score(self.local_reference, batch)
    for _ in range(STEPS):
      policy = self.score(params, batch)
      (value, metrics), slope = mean(policy, reference, batch)
      params, state, norm = self.step(params, state, batch, slope, case.rate)
      logged.append({"loss": value, "grad_norm": norm, **metrics})
    return jax.device_get(logged)

  def whole_steps(self, case, batch):
    """The same by the train step itself, on every device."""
    loss, optimizer = objective.resolve(case.spec), optax.chain(ADAM, optax.scale(-case.rate))
    step = train_step.make_train_step(
      model=self.model, scorer=tokens.causal, loss=loss, optimizer=optimizer, mesh=self.mesh
    )
    state, logged = train_step.init(self.params, optimizer, loss), []
    batch = sharding.put(batch, self.mesh)
    for _ in range(STEPS):
      state, metrics = step(state, self.reference, batch)
      logged.append(metrics)
    return jax.device_get(logged)

  def _score(self, params, batch):
    return tokens.causal(self.model, params, batch, collision=True)

  @functools.cached_property
  def optimizer_state(self):
    return ADAM.init(self.local)

  @functools.cached_property
  def score(self):
    return jax.jit(self._score)

  @functools.cached_property
  def step(self):
    def step(params, state, batch, slope, rate):
      _, pull = jax.vjp(lambda params: self._score(params, batch).token, params)
      (gradient,) = pull(slope)
      updates, state = ADAM.update(gradient, state, params)
      updates = jax.tree.map(lambda x: -rate * x, updates)
      return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    return jax.jit(step)


def checkpoints(directory, seed):
  """A policy and a reference near it, written by PyTorch; large weights, so nothing is flat."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  generator = torch.manual_seed(seed)
  config = LlamaConfig(**SIZES | {"num_hidden_layers": 2, "initializer_range": 0.1})
  model = LlamaForCausalLM(config)
  model.save_pretrained(directory / "policy")
  with torch.no_grad():
    for weight in model.parameters():
      weight += 0.02 * torch.randn(weight.shape, generator=generator)
  model.save_pretrained(directory / "reference")
  return directory / "policy", directory / "reference"


def _text(row, labelled):
  words = lambda ids: "".join(f" t{i}" for i in ids)  # noqa: E731
  text = {name: words(row[name]) for name in ("prompt", "chosen", "rejected")}
  if not labelled:
    return text
  return {"prompt": text["prompt"], "completion": text["chosen"], "label": row["label"]}


def _batch(rows, labelled):
  """The Batch of exactly these token ids, prompts padded on the left, responses on the right."""
  end, count = [SIZES["eos_token_id"]], len(rows)
  prompt, prompt_mask = padded([row["prompt"] for row in rows], PROMPT, "left")
  first = [row["chosen"] + end for row in rows]
  # TRL's other responses are those of the row before.
  second = [first[-1], *first[:-1]] if labelled else [row["rejected"] + end for row in rows]
  both = [response for pair in zip(first, second, strict=True) for response in pair]
  response, mask = padded(both, RESPONSE, "right")
  label = [[1 if row["label"] else -1, 0] for row in rows]
  return Batch(
    prompt=prompt[:, None],
    prompt_mask=prompt_mask[:, None],
    response=response.reshape(count, 2, -1),
    response_mask=mask.reshape(count, 2, -1).astype(np.float32),
    label=np.float32(label),
    valid=np.ones((count, 2), bool),
    weight=np.ones(count, np.float32),
    row=np.arange(count, dtype=np.int32),
  )


def padded(sequences, width, side):
  """Token ids and their mask, int32 and bool [N, width]."""
  ids = np.zeros((len(sequences), width), np.int32)
  mask = np.zeros((len(sequences), width), bool)
  for i, sequence in enumerate(sequences):
    place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
    ids[i, place], mask[i, place] = sequence, True
  return ids, mask
