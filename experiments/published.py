r"""The published settings by name: what each paper trained, as an overlay of a config.

    python -m larpo_jax.main --config experiments/published.py:larpo_contrastive_k10 \
      --workdir runs/published --config.model.path=CHECKPOINT
    python -m larpo_jax.main --config experiments/published.py:larpo_contrastive_k10,cpu \
      --workdir runs/published

The argument names one of `PRESETS`. Each has its method, the scale at which its authors ran it, and
what was read of it: "read" in the paper or in the authors' code, "memory" where that is still to be
checked, "uncertain" where sources differ or are silent; `source` says of what. Without a size the
run is on a checkpoint, with method and scale: presets that sample answer prompts of oasst_ranked,
ranked by the reward model of experiments/rewards/bradley_terry.py, the others learn from the pairs
of hh_rlhf_harmless (both under $LARPO_DATA, default ../shared/data); the authors' own data and
reward models are named in `source`, and are set by --config.data and --config.reward. With `,cpu`
the method alone goes on the world of arithmetic, in minutes: learning rate, batch and lengths are
those of larpo/objectives.py. `sweep` compares the presets of LarPO there.

Not measured as such: the pages of each method have the arms that these settings are compared with.
"""

from experiments import common
from experiments.larpo import objectives


def _preset(method, scale, verified, source):
  """Dotted keys and values: what is done, how large; how sure that is, and where it was read."""
  return dict(method=method, scale=scale, verified=verified, source=source)


def _loss(name, **arguments):
  return {"loss": dict(name=name, **arguments)}


def _lists(name, **arguments):
  return {"rounds.lists": dict(name=f"lists.{name}", **arguments)}


def _rounds(count, candidates, temperature, **more):
  sampled = dict(count=count, candidates=candidates, temperature=temperature, **more)
  return {f"rounds.{key}": value for key, value in sampled.items()}


def _scale(rate, batch, prompt, response, epochs=1.0, **optimizer):
  lengths = {"data.max_prompt": prompt, "data.max_response": response}
  sizes = {"optimizer.learning_rate": rate, "data.batch_size": batch, "epochs": epochs}
  return lengths | sizes | {f"optimizer.{key}": value for key, value in optimizer.items()}


_LARPO = _rounds(3, 10, 1.0, memory="all", dedupe=True)
_LARPO_SCALE = _scale(5e-7, 128, 1000, 1048, 2.0, schedule="cosine")
_LARPO_DATA = (
  "UltraFeedback prompts, FsfairX or PairRM rewards; beta is not in the paper: TRL's 0.1"
)
_MADPO_SCALE = _scale(
  1e-5, 32, 21, 175, 2.0, schedule="cosine", warmup=0.03, b2=0.95, weight_decay=0.01
) | {"model.lora": dict(rank=16, alpha=32.0, targets=("q", "k", "v", "o"))}
_MADPO_DATA = "notebooks of arXiv 2510.05342v1; IMDb, gemma-3-270m under LoRA of rank 16"
_RSO = _rounds(1, 64, 0.7, top_k=40, dedupe=True) | _lists("rso", beta=0.5, keep=8)
_RSO_SCALE = _scale(1e-5, 32, 512, 128) | {"optimizer": dict(name="adafactor")}
_RSO_DATA = "arXiv 2309.06657; TL;DR, T5-large, Adafactor, rewards as logits of a T5-XXL"
_ALL = ("q", "k", "v", "o", "gate", "up", "down")
_OWN = dict(top_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=3)
_MIL_DATA = "the authors' repository; 10,000 prompts of PKU-SafeRLHF; learning rate, beta not found"
_MIL_SCALE = _scale(5e-7, 32, 256, 128)


def _mil(source, prefer, **more):
  """Chosen by the first source against rejected by the second, or by the reward within one."""
  sampled = _rounds(1, 1, 0.5, greedy=True) if len(prefer) > 1 else _rounds(1, 5, 0.5, **_OWN)
  if sampled.get("rounds.greedy"):
    sampled["rounds.candidates"] = 2  # the greedy answer and one that is not looked at
  sampled |= {"rounds.prefer": prefer} | {f"rounds.{key}": value for key, value in more.items()}
  method = _loss("pairwise.dpo", beta=0.1) | sampled | _lists("best_worst")
  return _preset(method, _MIL_SCALE, "uncertain", f"{source} of arXiv 2504.02193; {_MIL_DATA}")


def _teacher(candidates, *paths):
  return dict(paths=paths, candidates=candidates, temperature=0.5)


def _madpo(c_max, c_min, tau, side="full", verified="read"):
  method = _loss("scored.madpo", beta=0.1, c_max=c_max, c_min=c_min, tau=tau, side=side)
  sampled = _rounds(1, 2, 1.0, noise=dict(name="noise.bradley_terry", scale=1.0))
  return _preset(method | sampled | _lists("best_worst"), _MADPO_SCALE, verified, _MADPO_DATA)


def _explored(name, rates, verified, source, greedy=True, batch=128, **loss):
  sampled = _rounds(3, 2 + greedy, 1.0, greedy=greedy, learning_rates=rates)
  sampled |= _lists("best_worst") | {"rounds.novelty": dict(name="novelty.first")}
  scale = _scale(5e-7, batch, 512, 512, schedule="cosine")
  return _preset(_loss(f"exploration.{name}", **loss) | sampled, scale, verified, source)


PRESETS = {
  "larpo_contrastive_k10": _preset(
    _loss("listwise.contrastive", beta=0.1) | _LARPO
    | _lists("top_bottom", positives=1, negatives=3),
    _LARPO_SCALE, "read", f"arXiv 2502.03699, H.1, and llama_contrastive.sh; {_LARPO_DATA}",
  ),
  "larpo_lambdarank_paper": _preset(
    _loss("listwise.lambdarank", beta=0.1) | _LARPO | _lists("whole"),
    _LARPO_SCALE, "uncertain", f"Eq. 18 on all ten; H.1 says two against two; {_LARPO_DATA}",
  ),
  "larpo_listmle_proper": _preset(
    _loss("listwise.listmle", beta=0.1) | _LARPO | _lists("whole"),
    _LARPO_SCALE, "uncertain", f"Eq. 23 on all ten; H.1 says two against two; {_LARPO_DATA}",
  ),
  "larpo_code_listmle": _preset(
    _loss("listwise.contrastive", beta=0.1) | _LARPO
    | _lists("top_bottom", positives=2, negatives=2),
    _LARPO_SCALE, "read", f"llama_listmle.sh, which trains InfoNCE, two by two; {_LARPO_DATA}",
  ),
  "larpo_code_lambda": _preset(
    _loss("pairwise.dpo", beta=0.1) | _LARPO | _lists("matched_ranks", pairs=3),
    _LARPO_SCALE, "uncertain",
    f"llama_lambdarank.sh; as released it may train on the best and worst alone; {_LARPO_DATA}",
  ),
  "iterdpo_k2": _preset(
    _loss("pairwise.dpo", beta=0.1) | _rounds(3, 2, 1.0, memory="none") | _lists("best_worst"),
    _LARPO_SCALE, "read", f"arXiv 2502.03699, Table 3, iterative DPO; {_LARPO_DATA}",
  ),
  "larpo_mem_all": _preset(
    _loss("pairwise.dpo", beta=0.1) | _rounds(3, 2, 1.0, memory="all", prompt_split="disjoint")
    | _lists("best_worst"),
    _LARPO_SCALE, "read", f"arXiv 2502.03699, Table 4; the scripts' prompts; {_LARPO_DATA}",
  ),
  "curri_dpo": _preset(
    _loss("pairwise.dpo", beta=0.1)
    | _rounds(1, 4, 1.0, reference="stage", difficulty="label_gap")
    | {"rounds.curriculum": dict(name="curriculum.easy_to_hard", stages=3)}
    | _lists("best_each"),
    _scale(5e-7, 32, 512, 512),
    "memory", "arXiv 2403.07230; ranked answers of UltraFeedback or OASST",
  ),
  "step_dpo": _preset(
    _loss("pairwise.dpo", beta=0.4) | _rounds(1, 2, 0.8, top_p=0.95)
    | {"rounds.steps": dict(unit="step", chosen="self", continuations=20, misplaced=0.0, pairs=0)},
    _scale(5e-7, 128, 512, 512, 8.0, schedule="cosine", warmup=0.1),
    "read", "arXiv 2406.18629, 7B; the scripts have beta 0.5 there; errors found by GPT-4o",
  ),
  "madpo_c2": _madpo(2.0, 0.5, 6.907),
  "madpo_c4": _madpo(4.0, 0.25, 7.0),
  "madpo_c4_amp": _madpo(4.0, 0.25, 7.0, "amplify"),
  "madpo_c4_reg": _madpo(4.0, 0.25, 7.0, "regularise"),
  "rdpo_eps.1": _preset(
    {"loss": dict(name="wrappers.robust", epsilon=0.1, kernel=dict(name="pairwise.dpo", beta=0.1))},
    _scale(1e-3, 16, 256, 256),
    "read", "TRL's paper index for arXiv 2403.00409; its IMDb is memory",
  ),
  "rso_sigmoid": _preset(_loss("pairwise.dpo", beta=0.05) | _RSO, _RSO_SCALE, "read", _RSO_DATA),
  "rso_hinge": _preset(
    _loss("reference_free.slic", delta=20.0, sft=0.0) | _RSO, _RSO_SCALE, "read", _RSO_DATA
  ),
  "rso_hingenorm": _preset(
    _loss("pairwise.hinge", beta=0.05) | _RSO, _RSO_SCALE, "read", _RSO_DATA
  ),
  "beta_dpo_official": _preset(
    _loss("batchwise.beta_dpo", beta=0.1, alpha=0.6, drop=0.2, init="zero"),
    _scale(5e-7, 64, 256, 256, warmup=150, clip=10.0)
    | {"optimizer": dict(name="rmsprop", decay=0.99, eps=1e-8, eps_in_sqrt=False)},
    "uncertain", "README of arXiv 2407.08639's code, the schedule not; Anthropic-HH, Pythia-2.8B",
  ),
  "ipo_avg": _preset(
    _loss("pairwise.ipo", beta=0.1), _scale(1e-2, 90, 512, 512),
    "read", "TRL's paper index, of a bandit",
  ),
  "ipo_sum": _preset(
    _loss("pairwise.ipo_sum", beta=0.1), _MADPO_SCALE, "read", f"a baseline of {_MADPO_DATA}"
  ),
  "mil_original": _preset(
    _loss("pairwise.dpo", beta=0.1), _MIL_SCALE, "uncertain", f"the data set's pairs; {_MIL_DATA}"
  ),
  "mil_hc_self": _mil("HC+Self", ("human", "greedy"), human=1),
  "mil_gpt4o_self": _mil("GPT4o+Self", ("teacher", "greedy"), teacher=_teacher(1, "runs/gpt4o")),
  "mil_stronger_self": _mil(
    "Stronger+Self", ("teacher", "greedy"), teacher=_teacher(1, "runs/stronger")
  ),
  "mil_peer_rm": _mil("Peer+RM", ("teacher",), teacher=_teacher(1, "runs/peer_a", "runs/peer_b")),
  "mil_all_rm": _mil("All+RM", (), teacher=_teacher(1, "runs/peer_a", "runs/gpt4o"), human=1),
  "mil_self_rm": _mil("Self+RM", ("self",)),
  "copo": _preset(
    _loss("exploration.copo", beta=0.01, alpha=1e-4)
    | _rounds(3, 3, 1.0, greedy=True, learning_rates=(5e-7, 3e-7, 1e-7)) | _lists("best_worst")
    | {"rounds.novelty": dict(name="novelty.coin_flips", learning_rate=1e-4, explored="first")},
    _scale(5e-7, 64, 512, 512, schedule="cosine", warmup=0.1)
    | {"model.lora": dict(rank=128, alpha=128.0, targets=_ALL)},
    "read", "the code of arXiv 2501.12735; UltraFeedback in thirds, PairRM, LoRA of rank 128",
  ),
  "selm_zephyr": _explored(
    "selm", (5e-7, 5e-7, 1e-7), "read", "arXiv 2405.19332, after a first DPO of its own",
    batch=256, beta=0.01, alpha=0.001,
  ),
  "selm_llama": _explored(
    "selm", (5e-7, 3e-7, 1e-7), "read", "arXiv 2405.19332", beta=0.01, alpha=0.0001
  ),
  "xpo": _explored(
    "xpo", (), "read", "TRL's XPO; a sample of the reference beside one of the policy",
    greedy=False, beta=0.1, alpha=1e-5,
  ),
}  # fmt: skip
LARPO = ("iterdpo_k2", "larpo_contrastive_k10", "larpo_lambdarank_paper", "larpo_listmle_proper")
LARPO += ("larpo_code_listmle", "larpo_code_lambda")


def overlaid(config, overlay):
  """The config with dotted keys set; a dict replaces a node whole, the optimizer's but its rest."""
  for key, value in overlay.items():
    *way, last = key.split(".")
    node = config
    for name in way:
      node = node[name]
    if key == "optimizer":
      kept = {name: node[last][name] for name in ("learning_rate", "schedule", "warmup", "clip")}
      value = kept | value
    if last in node:
      del node[last]
    node[last] = value
  return config


def get_config(arg=""):
  """A preset on a checkpoint; `NAME,cpu` on the world of arithmetic, `smoke` for seconds."""
  name, _, size = (arg if arg != "smoke" else f"{LARPO[1]},smoke").partition(",")
  name = name or LARPO[1]
  if name not in PRESETS:
    raise ValueError(f"no preset {name!r} here; there are: {', '.join(PRESETS)}")
  preset = PRESETS[name]
  if size:
    config = objectives.get_config("cpu")
    config.rounds.count = 1
    config.rounds.prompts = 384
    config.rounds.steps_per_round = 24
    overlaid(config, preset["method"])
    config.rounds.learning_rates = ()  # of other models
    if name.startswith("madpo"):
      config.reward.scale = 6.0  # their range: a reward is the logit of the labels' chance
    config = common.smoke(config) if size == "smoke" else config
    config.rounds.steps_per_round = max(config.rounds.steps_per_round, 3)  # a curriculum's stages
    return config
  return overlaid(overlaid(_on_checkpoint(preset), preset["method"]), preset["scale"])


def _on_checkpoint(preset):
  """Prompts to sample answers to, or pairs; the steps of an answer are those of the world."""
  if not any(key.startswith("rounds.") for key in preset["method"]):
    pairs = dict(prompt="messages", chosen="chosen", rejected="rejected")
    config, _ = common.real("", "readers.pairs", {"hh_rlhf_harmless": pairs})
  else:
    config, _ = common.real("", "readers.prompts", {"oasst_ranked": dict(prompt="messages")})
    columns = dict(prompt="messages", responses="candidates.text", rank="candidates.rank")
    config.data.test.reader = dict(name="readers.lists", **columns)
    if preset["method"].get("rounds.human"):  # the prompts' own answers are candidates, too
      config.data.reader = dict(name="readers.lists", **columns)
    config.reward = dict(name="models.scalar", path="runs/reward/export")
    config.rounds = dict(count=1, prompts=80, max_tokens=preset["scale"]["data.max_response"])
  if "rounds.steps" in preset["method"]:
    config.world = dict(name="arithmetic", steps=(4, 6))
    config.data.train.path = config.data.test.path = ""
    config.reward = dict(name="worlds.arithmetic")
  config.data.chat = config.world is None
  config.data.skip = ("all_tied", "one_candidate")
  return config


def sweep():
  """LarPO's presets on the world of arithmetic: run it with `:larpo_contrastive_k10,cpu`."""
  plain = {"rounds.dedupe": False}
  for name in LARPO:
    method = plain | PRESETS[name]["method"]
    yield {key: value for key, value in method.items() if key != "rounds.count"}
