"""Every setting of a run with its default and its unit. An experiment starts from `base()`."""

import os

import ml_collections


def base():
  """All fields; what each may be stands in larpo_jax/config/fields.py, held to this by a test."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of initialisation, data order and sampling
  config.steps = -1  # optimiser steps; -1: as many as the epochs take
  config.epochs = 1.0  # passes over the data (of each round), where steps is -1
  config.accumulation = 1  # micro-batches a step; must divide data.batch_size
  config.log_every = 10  # steps between rows of metrics.jsonl
  config.export = True  # write workdir/export as a Hugging Face checkpoint at the end

  config.model = ml_collections.ConfigDict()
  config.model.path = ""  # a Hugging Face checkpoint directory, or "" and a shape
  config.model.shape = ml_collections.ConfigDict()  # keys of config.json, for a model from scratch
  config.model.dtype = "float32"  # or "bfloat16": what the model computes in; weights are float32
  config.model.attention = "xla"  # or "fused": the kernel of the accelerator
  config.model.remat = "dots"  # kept for the backward pass; or "none": all, "full": nothing
  config.model.scan = True  # one compiled layer for all; False unrolls them
  config.model.lora = dict(rank=0, alpha=16.0, targets=("q", "k", "v", "o", "gate", "up", "down"))
  config.scorer = dict(name="tokens.causal")  # batch -> log-probs

  config.tokenizer = ml_collections.ConfigDict()
  config.tokenizer.path = ""  # a directory; "": that of model.path, or of the world
  config.tokenizer.chat_template = ""  # Jinja; "": the tokenizer's own

  config.data = ml_collections.ConfigDict()
  config.data.train = dict(path="", split="")  # what `datasets` reads: files, a directory, a hub id
  config.data.test = dict(path="", split="", reader=None)  # None: the same as data.reader
  config.data.reader = dict(name="readers.pairs")  # row -> prompt, responses, labels
  config.data.candidates = 0  # responses kept of a longer list; 0: all
  config.data.batch_size = 8  # prompts a step, over all processes
  config.data.max_prompt = 512  # tokens; a longer prompt keeps its end
  config.data.max_response = 512  # tokens
  config.data.overlong = "truncate"  # or "drop": the responses, or lists, that are too long
  config.data.max_bad_rows = 0  # more bad rows than this stop the run
  config.data.chat = False  # plain texts become a user's and an assistant's turn
  config.data.loss_on = "last"  # or "all_assistant": every turn of the assistant is trained on
  config.data.boundary = "joint"  # or "apart": prompt and response are tokenised on their own
  config.data.max_merged = 0.1  # share of rows whose prompt may merge with the response
  config.data.skip = ()  # kinds of bad rows that are left out without being counted as bad
  config.data.rooms = (
    2  # numbers of real tokens that batches of a shape are given room for, at most
  )
  config.data.shapes = 4  # (prompt, response) lengths that batches are padded to, at most
  config.data.eos = True  # responses end in one EOS that is trained on
  config.data.spans = False  # mark the tokens that differ from the best response
  config.data.mismatched = False  # one more response, label 0, written to another prompt

  # One kernel; or, after del config.loss, a tuple of them with a weight each.
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.reference = dict(cache=True, cache_dir="")  # reference log-probs on disk; "": beside data
  config.reference.update(sync_every=0, sync_share=0.6)  # steps until it moves to the policy; 0: no

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "adamw"  # or adafactor, lion, rmsprop, sgd: then replace the whole node
  config.optimizer.learning_rate = 1e-6  # at its peak
  config.optimizer.schedule = "linear"  # after the warm-up; or "cosine", "constant"
  config.optimizer.warmup = 0.1  # share of the steps; from 1 on, their number
  config.optimizer.clip = 1.0  # global norm of the gradient; 0: not clipped
  config.optimizer.weight_decay = 0.0  # of matrices
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8

  config.mesh = dict(data=-1, fsdp=1, tensor=1)  # devices on each axis; -1: what is left
  config.rules = ml_collections.ConfigDict()  # axis of a weight -> axis of the mesh
  config.rules.embed = "fsdp"
  config.rules.mlp = "tensor"
  config.rules.heads = "tensor"
  config.rules.kv_heads = "tensor"
  config.rules.vocab = "tensor"

  config.checkpoint = dict(every=100, keep=3)  # steps between saves; how many are kept
  config.evaluate = dict(
    every=0, rows=256
  )  # steps of a stage between evaluations, 0: at its ends; rows
  config.evaluate.samples = 0  # a prompt, for Pass@N, best-of-N and majority at the ends; 0: off
  config.evaluate.temperatures = (1.0,)  # of those samples, one pool each
  config.evaluate.batch_size = 256  # of those samples at a time, as memory allows
  config.evaluate.held_out = 0  # answers of the start that the implicit reward ranks; 0: off

  # Stages that an experiment may have. Write the whole node; its fields are in config/fields.py.
  config.supervised = None  # dict(examples, steps, batch_size, learning_rate, shared): imitation
  config.rounds = None  # dict(count, prompts, candidates, lists, ...): sample, rank, build, learn
  config.world = None  # dict(name="arithmetic", ...): prompts and demonstrations without a data set
  config.reward = None  # dict(name="rules.exact", ...): what ranks the samples of a round
  return config


def arithmetic():
  """base() on chains of arithmetic, with a 0.4M-parameter model that a supervised stage teaches.

  What it imitates is of mixed quality: a share `slip` goes wrong at a step, a share `hasty` states
  the answer at once.
  """
  config = base()
  config.world = dict(name="arithmetic", steps=3, slip=0.1, hasty=0.15)
  config.reward = dict(name="worlds.arithmetic")
  config.model.shape = dict(
    model_type="llama",
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    tie_word_embeddings=True,
    initializer_range=0.05,
  )
  config.data.max_prompt = 16
  config.data.max_response = 48
  config.data.shapes = config.data.rooms = 1

  config.optimizer.schedule = "cosine"
  config.optimizer.b2 = 0.98
  config.supervised = dict(examples=64_000, steps=2000, batch_size=32, learning_rate=3e-3)
  config.supervised.shared = True  # once for all runs that begin alike, as the arms of a sweep do
  config.log_every = 1
  return config


def at_betas(points, betas=(0.1, 0.3, 1.0, 3.0)):
  """Each point at each strength of the reference: a frontier of reward against KL for each."""
  for point in points:
    for beta in betas:
      yield {**point, "loss.beta": beta}


def smoke(config):
  """The same experiment in seconds: a tiny model, a few rows, two steps of each stage."""
  shape = config.model.shape
  if not config.model.path and shape:
    tiny = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    shape.update(tiny, num_attention_heads=2, num_key_value_heads=2)
  config.steps = 2
  config.data.batch_size = 8 * config.accumulation
  config.data.max_prompt = min(config.data.max_prompt, 64)
  config.data.max_response = min(config.data.max_response, 32)
  config.log_every = 1
  config.export = True  # what a page may do without is tried here
  config.checkpoint.every = 1
  config.evaluate.update(every=0, rows=8, samples=min(config.evaluate.samples, 4))
  if config.supervised:
    config.supervised.update(examples=32, steps=2, batch_size=8 * config.accumulation)
  if config.rounds:
    config.rounds.update(count=1, prompts=8, max_tokens=8, steps_per_round=2)
    config.rounds.candidates = min(config.rounds.get("candidates", 4), 4)
    config.reward = dict(name="rules.brevity")  # so young a model earns no other
  return config


def real(arg, reader, columns):
  """(base() on a checkpoint and one of the data sets, what else arg says).

  columns maps the names of the sets to what the reader takes, the default set first; arg is one of
  them, `smoke`, or DATA,smoke.
  """
  first = next(iter(columns))
  name, _, size = (arg if arg not in ("", "smoke") else f"{first},{arg}").partition(",")
  if name not in columns:
    raise ValueError(f"no data set {name!r} here; there are: {', '.join(columns)}")
  config = base()
  config.model.path = "runs/checkpoint"
  config.data.train.path = data(name, "train")
  config.data.test.path = data(name, "test")
  config.data.reader = dict(name=reader, **columns[name])
  return config, size


def data(name, split):
  """The file of a data set under $LARPO_DATA, by default ../shared/data."""
  directory = os.environ.get("LARPO_DATA") or os.path.join("..", "shared", "data")
  return os.path.join(directory, name, f"{split}.jsonl.gz")
