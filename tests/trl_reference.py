"""TRL's own DPO, run in this process: its loss on given log-probs, and its trainer on token ids."""

import collections
from types import SimpleNamespace

import numpy as np


def dpo_loss(token, reference, mask, *, beta=0.1, loss_type="sigmoid", entropy=None, **settings):
  """DPOTrainer._compute_loss without a model: (loss, d loss / d token, metrics).

  token, reference, mask and entropy are [2, B, R], chosen first: log-probs of response tokens.
  settings are attributes of the trainer, such as label_smoothing.
  """
  import torch
  from trl import DPOTrainer

  _, B, R = token.shape
  flat = torch.tensor(token.reshape(2 * B, R), requires_grad=True)
  outputs = SimpleNamespace(
    log_probs=flat,
    entropy=torch.tensor((token if entropy is None else entropy).reshape(2 * B, R)),
    mean_logits=torch.zeros(2 * B, R),
    is_top1=torch.zeros(2 * B, R, dtype=torch.bool),
  )
  same = lambda x: x  # noqa: E731
  trainer = SimpleNamespace(
    accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
    model=SimpleNamespace(training=True),
    aux_loss_enabled=False,
    ld_alpha=None,
    precompute_ref_logps=True,
    f_divergence_type="reverse_kl",
    beta=beta,
    loss_types=[loss_type],
    loss_weights=[1.0],
    use_weighting=False,
    label_smoothing=0.0,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
  )
  vars(trainer).update(settings)
  # One token of prompt: TRL's masks are over the whole sequence and are shifted by one.
  masks = torch.tensor(np.pad(mask.reshape(2 * B, R), [(0, 0), (1, 0)]))
  sums = torch.tensor((reference * mask).sum(-1))
  inputs = {
    "input_ids": torch.zeros(2 * B, R + 1, dtype=torch.long),
    "attention_mask": torch.ones(2 * B, R + 1, dtype=torch.long),
    "completion_mask": masks,
    "ref_chosen_logps": sums[0],
    "ref_rejected_logps": sums[1],
  }
  loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
  loss.backward()
  metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
  return loss.item(), flat.grad.numpy().reshape(token.shape), metrics


def dpo_training(policy, reference, rows, directory, *, steps, beta=0.1, learning_rate=1e-3):
  """DPOTrainer for some full-batch AdamW steps in float32: one dict of what it logs per step.

  policy and reference are directories of checkpoints, rows dicts of prompt_ids, chosen_ids and
  rejected_ids. grad_norm is before clipping, and nothing is clipped; no dropout, no weight decay.
  """
  from datasets import Dataset
  from transformers import AutoModelForCausalLM, TrainerCallback
  from trl import DPOConfig, DPOTrainer

  losses, logged = [], []

  class TokenIds(DPOTrainer):
    def _prepare_dataset(self, dataset, *_, **__):
      return dataset

    def compute_loss(self, *arguments, **keywords):
      loss = super().compute_loss(*arguments, **keywords)
      losses.append(loss.item())  # what it logs is rounded
      return loss

  class Logs(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
      if "loss" in logs:
        logged.append(dict(logs))

  models = [
    AutoModelForCausalLM.from_pretrained(path, dtype="float32", attn_implementation="eager")
    for path in (policy, reference)
  ]
  settings = DPOConfig(
    output_dir=str(directory),
    per_device_train_batch_size=len(rows),
    max_steps=steps,
    learning_rate=learning_rate,
    lr_scheduler_type="constant",
    max_grad_norm=1e9,
    beta=beta,
    max_length=None,
    logging_steps=1,
    bf16=False,
    gradient_checkpointing=False,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
    train_sampling_strategy="sequential",
  )
  trainer = TokenIds(
    model=models[0],
    ref_model=models[1],
    args=settings,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer(models[0].config),
    callbacks=[Logs()],
  )
  trainer.train()
  return [row | {"loss": loss} for row, loss in zip(logged, losses, strict=True)]


def tokenizer(config):
  """A tokenizer with the right special tokens, all that the trainer reads of it."""
  from tokenizers import Tokenizer, models
  from transformers import PreTrainedTokenizerFast

  special = {config.pad_token_id: "<pad>", config.bos_token_id: "<s>", config.eos_token_id: "</s>"}
  vocabulary = {special.get(i, f"t{i}"): i for i in range(config.vocab_size)}
  words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
  return PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
  )
