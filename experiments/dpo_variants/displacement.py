r"""Why do chosen responses become less likely, and what helps? DPO against its remedies.

    python -m larpo_jax.main --config experiments/dpo_variants/displacement.py \
        --workdir runs/displacement --config.model.path=CHECKPOINT

Look at displacement/chosen, the change of the chosen response's log-prob since the start: it falls
under DPO while the accuracy rises. The data is pandalm_pairs, as in all_pairwise.py.

Run so far as `:smoke` only, seconds of training within half a minute; in full it takes what
all_pairwise.py takes.
"""

from experiments import common
from experiments.dpo_variants import all_pairwise


def get_config(arg=""):
  """The page; `:smoke` shrinks it to seconds."""
  config = all_pairwise.get_config()
  config.data.spans = False
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.log_every = 1
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """DPO, and each remedy that was proposed."""
  dpo = dict(name="pairwise.dpo", beta=0.1)
  yield {"loss": dpo}
  for penalty in (5.0, 50.0):
    yield {"loss": dict(name="margins.dpop", beta=0.1, penalty=penalty)}
  for sft in (0.1, 1.0):
    yield {"loss": dict(name="wrappers.with_sft", sft=sft, kernel=dpo)}
  for shift in (0.5, 0.75, 0.95):
    yield {"loss": dict(name="margins.dpo_shift", beta=0.1, shift=shift)}
  for name in ("pairwise.apo_zero", "pairwise.nca", "pairwise.bco_pair", "margins.minor_dpo"):
    yield {"loss": dict(name=name, beta=0.1)}
  for beta in (0.001, 0.01):
    yield {"loss": dict(name="margins.cal_dpo", beta=beta)}
