"""Faults that scripts/mutations.py plants: in what kernels share, in the step, in the scorer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
  """One change of one place: `old` stands exactly once in the file, within larpo_jax."""

  what: str
  file: str
  old: str
  new: str
  select: str  # which tests are run: pytest's -k
  tests: str = "tests/losses*_test.py"  # and where they are: patterns


STEP = "tests/train_step_test.py"
MATRIX = "tests/invariance_test.py"
PARTS = "2-1x1x1"  # the matrix in two parts, on one device
SCORES, PAIRS, RUNNING = (f"losses/_{name}.py" for name in ("scores", "pairs", "running"))
HEAD, TOKENS = "scorers/_head.py", "scorers/tokens.py"
HEADS = "tests/scorers_test.py tests/divergence_test.py"
ROWS = "tests/rows_test.py"

FAULTS = [
  # What kernels share.
  Fault(
    "ties: equal labels compete",
    "masked.py",
    "label[..., :, None] > label[..., None, :]",
    "label[..., :, None] >= label[..., None, :]",
    "listwise.listmle",
  ),
  Fault(
    "ties: of several best responses the first is taken silently",
    SCORES,
    "return batch.valid & (batch.label == top)",
    "first = jnp.argmax(batch.valid & (batch.label == top), axis=-1, keepdims=True)\n"
    "  return jax.lax.broadcasted_iota(jnp.int32, batch.label.shape, 1) == first",
    "pairwise.dpo and not wrappers",
  ),
  Fault(
    "mask: padded responses take part in pairs",
    "masked.py",
    "valid[..., :, None] & valid[..., None, :]",
    "valid[..., :, None] | valid[..., None, :]",
    "listwise.lambdarank",
  ),
  Fault(
    "mask: log-ratios of padded responses are read",
    SCORES,
    "return jnp.where(batch.valid, policy.sequence - reference.sequence, 0.0)",
    "return policy.sequence - reference.sequence",
    "listwise.listmle",
  ),
  Fault(
    "mask: a sequence is summed over masked tokens too",
    "types.py",
    "jnp.sum(jnp.where(self.mask > 0, self.token * self.mask, 0.0), axis=-1)",
    "jnp.sum(self.token, axis=-1)",
    "pairwise.dpo and not wrappers",
  ),
  Fault(
    "padding: the mean over tokens divides by the padded width",
    "types.py",
    "return self.sequence / jnp.maximum(self.length, 1.0)",
    "return self.sequence / self.token.shape[-1]",
    "pairwise.simpo",
  ),
  Fault(
    "reduction: masked means divide by all, not by what is selected",
    "masked.py",
    "count = jnp.sum(jnp.where(mask, jnp.ones_like(x), 0.0), axis=axis)",
    "count = jnp.sum(jnp.ones_like(x), axis=axis)",
    "pairwise.dpo and not wrappers",
  ),
  Fault(
    "reduction: weighted means divide by the number of prompts",
    "masked.py",
    "/ jnp.where(total > 0, total, 1.0)",
    "/ jnp.where(total > 0, jnp.float32(jnp.size(weight)), 1.0)",
    "metrics_are_means",
    STEP,
  ),
  Fault(
    "mask: responses without a rival count as rivals of logit 0",
    SCORES,
    "left_out = jnp.where(contested, -jnp.inf, 0.0)[..., None]  # [B, K, 1]",
    "left_out = jnp.zeros_like(own)[..., None]",
    "listwise.contrastive",
  ),
  Fault(
    "reduction: the sum over pairs, not the mean",
    PAIRS,
    "return masked.mean(terms, ends(batch), (-2, -1))",
    "return masked.sum(terms, ends(batch), (-2, -1))",
    "pairwise.hinge or preflight",
    f"tests/losses*_test.py {STEP}",
  ),
  Fault(
    "stop-gradient dropped: the running mean of rewards",
    RUNNING,
    'return jax.lax.stop_gradient({"count": count, "mean": statistics["mean"] + moved})',
    'return {"count": count, "mean": statistics["mean"] + moved}',
    "unpaired.bco or batchwise.bco_pair_shift",
  ),
  Fault(
    "running mean: every step counts alike, however many rewards it had",
    RUNNING,
    "added / jnp.maximum(count, 1e-30)",
    "0.1",
    "unpaired.bco or batchwise.bco_pair_shift",
  ),
  # The step.
  Fault(
    "accumulation divides twice",
    "micro_batches.py",
    "jax.tree.map(lambda x: x / weight, sums)",
    "jax.tree.map(lambda x: x / weight / count, sums)",
    PARTS,
    MATRIX,
  ),
  Fault(
    "reduction: micro-batches are a mean of means",
    "micro_batches.py",
    "weight = jnp.sum(part.weight)",
    "weight = jnp.sum(batch.weight) / count",
    PARTS,
    MATRIX,
  ),
  Fault(
    "two passes: the slope in the KL is dropped",
    "micro_batches.py",
    '"kl": policy.kl}',
    '"kl": None}',
    "micro_batches_are_exact",
    STEP,
  ),
  Fault(
    "two passes: slopes go back to the wrong micro-batch",
    "micro_batches.py",
    "jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])",
    "x.reshape(-1, *x.shape[2:])",
    PARTS,
    MATRIX,
  ),
  Fault(
    "kernels that couple prompts are summed over micro-batches",
    "train_step.py",
    "if not carries and not objectives.couples_prompts(loss):",
    "if not carries:",
    "micro_batches_are_exact",
    STEP,
  ),
  Fault(
    "statistics are not carried to the next step",
    "train_step.py",
    "return value, metrics, gradient, carried if carries else statistics",
    "return value, metrics, gradient, statistics",
    "stopped_and_resumed and sampo",
    MATRIX,
  ),
  Fault(
    "statistics are carried but not read",
    "objective.py",
    "before = initial(loss) if statistics is None else statistics",
    "before = initial(loss)",
    PARTS,
    MATRIX,
  ),
  Fault(
    "statistics move on a step that is skipped",
    "train_step.py",
    "statistics=jax.tree.map(keep, statistics, state.statistics)",
    "statistics=statistics",
    "skipped_step and bco",
    MATRIX,
  ),
  Fault(
    "the guard looks at the loss and not at the gradient",
    "train_step.py",
    "finite = jnp.isfinite(value) & jnp.isfinite(norm)",
    "finite = jnp.isfinite(value)",
    "not_finite",
    STEP,
  ),
  Fault(
    "stop-gradient dropped: the reference",
    "train_step.py",
    "return jax.lax.stop_gradient(scorer(model, reference_params, batch))",
    "return scorer(model, reference_params, batch)",
    "no_gradient_reaches",
    STEP,
  ),
  Fault(
    "mask: a cached reference is read where masked",
    "train_step.py",
    "LogProbs(token=jnp.where(mask > 0, token, 0.0), mask=mask)",
    "LogProbs(token=token, mask=mask)",
    "cached_reference_is_zero",
    STEP,
  ),
  Fault(
    "frozen weights are not part of the KL's reference",
    "train_step.py",
    'asked["reference"] = join(asked["reference"], frozen)',
    "pass",
    "frozen",
    STEP,
  ),
  Fault(
    "the KL is that of the policy to itself",
    "train_step.py",
    'asked["reference"] = reference_params',
    'asked["reference"] = params',
    PARTS,
    MATRIX,
  ),
  Fault(
    "weight ignored: a sum of losses",
    "objective.py",
    "total += weight * per_prompt",
    "total += per_prompt",
    "weighted_sum",
    STEP,
  ),
  Fault(
    "weight ignored: the mean over prompts",
    "objective.py",
    "average = lambda x: masked.weighted_mean(x, batch.weight)",
    "average = lambda x: jnp.mean(x)",
    "metrics_are_means",
    STEP,
  ),
  # The scorer.
  Fault(
    "direction: KL(policy || reference)",
    HEAD,
    "jnp.exp(reference) * (reference - policy)",
    "jnp.exp(policy) * (policy - reference)",
    "divergence",
    HEADS,
  ),
  Fault(
    "sign: the KL's gradient",
    HEAD,
    "[:, None] * (policy - reference)",
    "[:, None] * (reference - policy)",
    "divergence",
    HEADS,
  ),
  Fault(
    "collision is that of p, not of p squared",
    HEAD,
    "jnp.sum(odds * odds, axis=-1)",
    "jnp.sum(odds, axis=-1)",
    "collision",
    HEADS,
  ),
  Fault(
    "off by one: the last chunk of the head is left out",
    HEAD,
    "(most + size - 1) // size",
    "most // size",
    "head",
    HEADS,
  ),
  Fault(
    "the gradient of a target's logit forgets that its own probability falls",
    HEAD,
    "-weight * jnp.expm1(own)",
    "weight",
    "head",
    HEADS,
  ),
  Fault(
    "the soft cap's derivative is forgotten",
    HEAD,
    "(slope(at, logits) * cap).astype(hidden.dtype)",
    "slope(at, logits).astype(hidden.dtype)",
    "head or divergence",
    HEADS,
  ),
  Fault(
    "off by one: positions of a response begin after the prompt's last token",
    "models/prompts.py",
    "position = length - 1 + jax.lax",
    "position = length + jax.lax",
    "one_long_row or empty",
    HEADS,
  ),
  # Rows of real tokens, and their attention.
  Fault(
    "rows: too little room is silent",
    "models/rows.py",
    "overflow=jnp.any(jnp.sum(real, axis=1) > size)",
    "overflow=jnp.zeros((), bool)",
    "room or device",
    ROWS,
  ),
  Fault(
    "rows: the room of a batch is that of its average part",
    "data/schedule.py",
    "tokens.mean(axis=2).max(axis=1)",
    "tokens.mean(axis=2).mean(axis=1)",
    "fits",
    ROWS,
  ),
  Fault(
    "rows: gradients go to the rows in front",
    "models/rows.py",
    "return _take(gradient, inverse), None, None",
    "return gradient[:, : inverse.shape[1]], None, None",
    "room",
    ROWS,
  ),
  Fault(
    "attention: the slope of a score forgets the others of its softmax",
    "models/matmuls.py",
    "ds = p * (dp - delta) * scale",
    "ds = p * dp * scale",
    "two_blocks",
    "tests/attention_test.py",
  ),
]
