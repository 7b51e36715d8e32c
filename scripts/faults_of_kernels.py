"""Faults that scripts/mutations.py plants: in kernels and wrappers."""

from __future__ import annotations

from faults import Fault

PAIRWISE, UNPAIRED, BATCHWISE, TOKENWISE, LISTWISE, WRAPPERS, SCORED, FREE, TARGETS = (
  f"losses/{name}.py"
  for name in (
    *("pairwise", "unpaired", "batchwise", "tokenwise", "listwise", "wrappers", "scored"),
    *("reference_free", "targets"),
  )
)

WITH_MATRIX = "tests/losses*_test.py tests/invariance_test.py"

# Two that change nothing, and so are not here: a gradient through DRO's value, which is the one
# that makes the loss least, and a gradient through LiPO's ranks, which are counts.
FAULTS = [
  # Kernels.
  Fault(
    "sign: DPO prefers the rejected response",
    PAIRWISE,
    "terms = -jax.nn.log_sigmoid(_scores.margins(reward))  # [B, K, K]",
    "terms = -jax.nn.log_sigmoid(-_scores.margins(reward))",
    "pairwise.dpo and not wrappers",
  ),
  Fault(
    "sign: SPPO's rejected response is drawn to the chosen one's target",
    PAIRWISE,
    "jnp.square(rejected + 0.5 / beta)",
    "jnp.square(rejected - 0.5 / beta)",
    "pairwise.sppo_hard",
  ),
  Fault(
    "reduction: IPO sums over tokens where TRL takes the mean",
    PAIRWISE,
    "ahead = _scores.margins(_scores.mean_log_ratio(policy, reference, batch))",
    "ahead = _scores.margins(_scores.log_ratio(policy, reference, batch))",
    "pairwise.ipo and not wrappers",
  ),
  Fault(
    "sign: SimPO's target margin is added",
    PAIRWISE,
    "terms = -jax.nn.log_sigmoid(_scores.margins(reward) - gamma)",
    "terms = -jax.nn.log_sigmoid(_scores.margins(reward) + gamma)",
    "pairwise.simpo",
  ),
  Fault(
    "stop-gradient dropped: KTO's baseline",
    UNPAIRED,
    "kl = jax.lax.stop_gradient(jnp.maximum(masked.weighted_mean(ratio, heard), 0.0))",
    "kl = jnp.maximum(masked.weighted_mean(ratio, heard), 0.0)",
    "kto",
  ),
  Fault(
    "weight ignored in a batch mean: KTO's baseline",
    UNPAIRED,
    "heard = jnp.where(jnp.any(other, axis=-1), batch.weight, 0.0)",
    "heard = jnp.where(jnp.any(other, axis=-1), 1.0, 0.0)",
    "kto",
  ),
  Fault(
    "mask: BCO's running mean counts responses without a verdict",
    UNPAIRED,
    "judged = batch.valid & (batch.label != 0)",
    "judged = batch.valid",
    "unpaired.bco",
  ),
  Fault(
    "running mean: BCO moves it after use",
    UNPAIRED,
    'good = -jax.nn.log_sigmoid(reward - new["mean"])',
    'good = -jax.nn.log_sigmoid(reward - before["mean"])',
    "unpaired.bco",
  ),
  Fault(
    "weight ignored in a batch mean: DRO's common value",
    UNPAIRED,
    "jnp.where(single, batch.weight, 0.0)",
    "jnp.where(single, 1.0, 0.0)",
    "unpaired.dro",
    WITH_MATRIX,
  ),
  Fault(
    "mask: AOT sorts prompts in that have no pair",
    BATCHWISE,
    "jnp.argsort(jnp.where(there, x, jnp.inf))",
    "jnp.argsort(x)",
    "batchwise.aot",
  ),
  Fault(
    "off by one prompt: AOT's terms stay in sorted order",
    BATCHWISE,
    "jnp.zeros_like(own).at[order].set(terms)",
    "terms",
    "batchwise.aot",
  ),
  Fault(
    "weight ignored in a batch mean: Dr.DPO",
    "losses/_scores.py",
    "weight = jnp.where(there, batch.weight, 0.0)\n  scaled",
    "weight = jnp.where(there, 1.0, 0.0)\n  scaled",
    "batchwise.dr_dpo and not decoder",
    WITH_MATRIX,
  ),
  Fault(
    "beta-DPO draws by place in the batch, not by row of the data",
    BATCHWISE,
    "jnp.asarray(row).astype(jnp.uint32)",
    "jnp.arange(len(row), dtype=jnp.uint32)",
    "beta_dpo",
    WITH_MATRIX,
  ),
  Fault(
    "beta-DPO keeps what it should drop",
    BATCHWISE,
    "* (1.0 - drop))",
    "* drop)",
    "beta_dpo",
  ),
  Fault(
    "stop-gradient dropped: TDPO2's chosen divergence",
    TOKENWISE,
    "chosen, _ = _pairs.sides(jax.lax.stop_gradient(divergence))",
    "chosen, _ = _pairs.sides(divergence)",
    "tdpo2 or pulls",
    "tests/losses*_test.py tests/divergence_test.py",
  ),
  Fault(
    "sign: TDPO1's divergences are swapped",
    TOKENWISE,
    "_scores.margins(reward) + beta * moved",
    "_scores.margins(reward) - beta * moved",
    "tokenwise.tdpo1",
  ),
  Fault(
    "off by one: SamPO keeps a token more than the shorter response has",
    TOKENWISE,
    "there & (place < least)",
    "there & (place <= least)",
    "sampo",
  ),
  Fault(
    "padding counted: SamPO's shortest response may be a padded one",
    TOKENWISE,
    "least = jnp.min(jnp.where(batch.valid, length, jnp.inf), axis=-1)[:, None, None]",
    "least = jnp.min(length, axis=-1)[:, None, None]",
    "sampo",
  ),
  Fault(
    "off by one: Step-DPO leaves out the first token that differs",
    TOKENWISE,
    "return jnp.cumsum(differ, axis=-1).clip(0, 1)",
    "return (jnp.cumsum(differ, axis=-1) - differ).clip(0, 1)",
    "step_dpo",
  ),
  Fault(
    "mask: RRPO compares shared tokens too",
    TOKENWISE,
    "inside = (batch.span > 0).astype(jnp.float32)",
    "inside = (batch.span >= 0).astype(jnp.float32)",
    "tokenwise.rrpo",
  ),
  Fault(
    "off by one in ranks: LiPO's discount is log(2 + rank)",
    LISTWISE,
    "1.0 / jnp.log1p(_rank(",
    "1.0 / jnp.log1p(1.0 + _rank(",
    "listwise.lipo_lambda",
  ),
  Fault(
    "off by one: a positive too many in the authors' contrastive code",
    LISTWISE,
    "top = batch.valid & (_count(wins, -2) < positives)",
    "top = batch.valid & (_count(wins, -2) <= positives)",
    "listwise.code_contrastive",
  ),
  Fault(
    "stop-gradient dropped: COPO's novelty",
    "losses/exploration.py",
    "novelty = jax.lax.stop_gradient(ratio * scale * _scores.importance(batch))",
    "novelty = ratio * scale * _scores.importance(batch)",
    "exploration.copo",
  ),
  Fault(
    "direction: RPO's backward KL is the forward one",
    SCORED,
    "terms = _divergence(target, _scores.margins(reward))",
    "terms = _divergence(_scores.margins(reward), target)",
    "scored.rpo_backward_kl",
  ),
  Fault(
    "sign: MADPO's cutoff is at the other end",
    SCORED,
    "cutoff & (gap <= -tau)",
    "cutoff & (gap >= -tau)",
    "scored.madpo",
  ),
  Fault(
    "flavor ignored: RRHF's likelihood is a sum in both",
    FREE,
    '{"paper": sums, "code": means}',
    '{"paper": sums, "code": sums}',
    "rrhf",
  ),
  Fault(
    "reduction: NCA's noise term divides by the padded list",
    TARGETS,
    "noise = masked.mean(-jax.nn.log_sigmoid(-gamma), batch.valid, -1)",
    "noise = masked.sum(-jax.nn.log_sigmoid(-gamma), batch.valid, -1) / gamma.shape[-1]",
    "targets.nca",
  ),
  # Wrappers.
  Fault(
    "swap: the robust wrapper's flipped labels are not flipped",
    WRAPPERS,
    "label=-batch.label",
    "label=batch.label",
    "wrappers.robust",
  ),
  Fault(
    "stop-gradient dropped: WPO's weights",
    WRAPPERS,
    "weight = jax.lax.stop_gradient(jnp.exp(jnp.minimum(total, bound)))",
    "weight = jnp.exp(jnp.minimum(total, bound))",
    "wrappers.wpo",
  ),
  Fault(
    "mask: WPO reads the collision of masked tokens",
    WRAPPERS,
    "aligned = jnp.where(policy.mask > 0, policy.token - policy.collision, 0.0)",
    "aligned = policy.token - policy.collision",
    "wrappers.wpo",
  ),
  Fault(
    "padding counted: LD-DPO's least length may be a padded response's",
    WRAPPERS,
    "length = jnp.where(batch.valid, policy.length, jnp.inf)",
    "length = policy.length",
    "wrappers.ld_dpo",
  ),
  Fault(
    "swap: LD-DPO cuts the policy only",
    WRAPPERS,
    "return kernel(cut(policy), cut(reference), batch)",
    "return kernel(cut(policy), reference, batch)",
    "wrappers.ld_dpo",
  ),
]
