"""TRL's own losses, run in this process: on given log-probs, and its trainers on rows of text."""

import collections
import copy
import functools
from types import SimpleNamespace

import numpy as np

CPU = {"accelerator": SimpleNamespace(device="cpu")}


def trainers():
  """{name: (trainer, its config)}."""
  import trl
  from trl.experimental import cpo, orpo

  return {
    "DPO": (trl.DPOTrainer, trl.DPOConfig),
    "KTO": (trl.KTOTrainer, trl.KTOConfig),
    "CPO": (cpo.CPOTrainer, cpo.CPOConfig),
    "ORPO": (orpo.ORPOTrainer, orpo.ORPOConfig),
  }


def loss(name, policy, reference, label, settings):
  """A trainer's loss without a model: (loss, d loss / d token, metrics).

  policy and reference are LogProbs [B, 2, R]: the chosen and the rejected response; for KTO, the
  response with its label [B, 2] and the mismatched one. settings are those of the config.
  """
  import torch

  tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float32)  # noqa: E731
  token = tensor(policy.token).requires_grad_()
  given = SimpleNamespace(
    token=token,
    other=tensor(reference.token),
    mask=tensor(policy.mask),
    entropy=tensor(policy.entropy),
    collision=tensor(policy.collision),
    label=tensor(label)[:, 0] > 0,
  )
  value, metrics = {"DPO": _dpo, "KTO": _kto, "CPO": _cpo, "ORPO": _orpo}[name](given, settings)
  value.backward()
  return value.item(), token.grad.numpy(), metrics


def _stub(**attributes):
  """What _compute_loss reads of a trainer."""
  same = lambda x: x  # noqa: E731
  return SimpleNamespace(
    accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
    args=SimpleNamespace(
      gradient_checkpointing_kwargs=None, discopop_tau=attributes.get("discopop_tau", 0.05)
    ),
    model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
    aux_loss_enabled=False,
    precompute_ref_logps=False,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
    **attributes,
  )


def _outputs(token, mask, entropy, collision):
  """What TRL's fused head gives, [N, R]; as there, log-probs are 0 where masked."""
  import torch

  zeros = torch.zeros_like(token)
  return SimpleNamespace(
    log_probs=token * mask,
    entropy=entropy,
    log_sum_sq_probs=collision,
    mean_logits=zeros,
    is_top1=zeros > 0,
  )


def _sequences(mask):
  """Inputs with one token of prompt: TRL's masks are over whole sequences and shifted by one."""
  import torch

  masks = torch.nn.functional.pad(mask, (1, 0))
  return {
    "input_ids": torch.zeros(masks.shape, dtype=torch.long),
    "attention_mask": torch.ones(masks.shape, dtype=torch.long),
    "completion_mask": masks,
  }


def _logged(trainer):
  return {name: values[0] for name, values in trainer._metrics["train"].items()}


def _dpo(given, settings):
  first = lambda x: x.transpose(0, 1).flatten(0, 1)  # noqa: E731  all chosen, then all rejected
  mask = first(given.mask)
  answer = lambda x: _outputs(first(x), mask, first(given.entropy), first(given.collision))  # noqa: E731
  trainer = _stub(
    ref_model=lambda **_: answer(given.other),
    loss_types=settings["loss_type"],
    **{
      "loss_weights": [1.0] * len(settings["loss_type"]),
      "beta": 0.1,
      "label_smoothing": 0.0,
      "ld_alpha": None,
      "use_weighting": False,
      "f_divergence_type": "reverse_kl",
      **settings,
    },
  )
  compute = trainers()["DPO"][0]._compute_loss
  value = compute(trainer, lambda **_: answer(given.token), _sequences(mask), False)
  return value, _logged(trainer)


def _kto(given, settings):
  own, mismatched = given.mask.unbind(1)
  settings = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0} | settings
  loss_type = settings.setdefault("loss_type", "kto")
  trainer_class = trainers()["KTO"][0]

  def model(token):
    answer = lambda i, mask: _outputs(token[:, i], mask, *given_of(i))  # noqa: E731
    return lambda input_ids, **_: answer(1, mismatched) if input_ids.any() else answer(0, own)

  given_of = lambda i: (given.entropy[:, i], given.collision[:, i])  # noqa: E731
  trainer = _stub(calculate_KL=loss_type == "kto", ref_model=model(given.other), **settings)
  trainer._compute_kl_logps = functools.partial(trainer_class._compute_kl_logps, trainer)
  other = {f"KL_{name}": value for name, value in _sequences(mismatched).items()}
  other["KL_input_ids"] = other["KL_input_ids"] + 1  # how the model above tells the two apart
  inputs = _sequences(own) | other | {"label": given.label}
  if not trainer.calculate_KL:
    inputs = {name: value for name, value in inputs.items() if not name.startswith("KL_")}
  return trainer_class._compute_loss(trainer, model(given.token), inputs, False), _logged(trainer)


def _sides(given):
  """Sums over tokens, and means, of the chosen and the rejected responses."""
  sums = (given.token * given.mask).sum(-1)
  return sums.unbind(1), (sums / given.mask.sum(-1)).unbind(1)


def _cpo(given, settings):
  config = trainers()["CPO"][1](output_dir="unused", bf16=False, use_cpu=True, **settings)
  sums, means = _sides(given)
  kept = ("beta", "label_smoothing", "loss_type", "alpha", "simpo_gamma")
  trainer = SimpleNamespace(**CPU, **{name: getattr(config, name) for name in kept})
  used = means if config.loss_type == "simpo" else sums
  losses, *rewards = trainers()["CPO"][0].cpo_loss(trainer, *used)
  nll = -sums[0].sum() / given.mask[:, 0].sum()
  return losses.mean() + config.cpo_alpha * nll, _rewarded(used, rewards)


def _orpo(given, settings):
  trainer = SimpleNamespace(**CPU, beta=settings.get("beta", 0.1))
  sums, means = _sides(given)
  losses, *rewards, _, _ = trainers()["ORPO"][0].odds_ratio_loss(trainer, *means)
  nll = -sums[0].sum() / given.mask[:, 0].sum()
  return nll - losses.mean(), _rewarded(means, rewards)


def _rewarded(logps, rewards):
  both = zip(("chosen", "rejected"), logps, rewards, strict=True)
  found = {}
  for name, logp, reward in both:
    found |= {f"logps/{name}": logp.mean().item(), f"rewards/{name}": reward.mean().item()}
  return found


@functools.cache
def model(path):
  """A checkpoint in float32, read once; copy it before training."""
  from transformers import AutoModelForCausalLM

  return AutoModelForCausalLM.from_pretrained(path, dtype="float32", attn_implementation="eager")


def train(name, settings, policy, reference, rows, directory, *, steps, rate, betas, epsilon):
  """A trainer for some full-batch AdamW steps in float32: one dict of what it logs per step.

  policy and reference are directories of checkpoints, rows dicts of text for its own tokenisation.
  grad_norm is before clipping, and nothing is clipped; no dropout, no weight decay.
  """
  from datasets import Dataset
  import torch
  from transformers import TrainerCallback

  trainer_class, config_class = trainers()[name]
  losses, logged = [], []

  class Exact(trainer_class):
    def compute_loss(self, *arguments, **keywords):
      loss = super().compute_loss(*arguments, **keywords)
      losses.append(loss.item())  # what it logs is rounded
      return loss

  class Logs(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
      if "loss" in logs:
        logged.append(dict(logs))

  config = config_class(
    output_dir=str(directory),
    per_device_train_batch_size=len(rows),
    max_steps=steps,
    learning_rate=rate,
    adam_beta1=betas[0],
    adam_beta2=betas[1],
    adam_epsilon=epsilon,
    lr_scheduler_type="constant",
    max_grad_norm=1e9,
    max_length=64,
    logging_steps=1,
    bf16=False,
    gradient_checkpointing=False,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
    train_sampling_strategy="sequential",
    **settings,
  )
  start = copy.deepcopy(model(policy))
  fixed = {"ref_model": copy.deepcopy(model(reference))} if name in ("DPO", "KTO") else {}
  trainer = Exact(
    model=start,
    **fixed,
    args=config,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer(start.config),
    callbacks=[Logs()],
  )
  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # matrices of 32 rows: several threads only wait for each other
  try:
    trainer.train()
  finally:
    torch.set_num_threads(threads)
  return [row | {"loss": loss} for row, loss in zip(logged, losses, strict=True)]


def tokenizer(config):
  """One token a word, `t5 t17`, and no BOS, so that the trainers add none."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  special = {config.pad_token_id: "<pad>", config.eos_token_id: "</s>"}
  vocabulary = {special.get(i, f"t{i}"): i for i in range(config.vocab_size)}
  words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
