r"""More is Less: whose answers are chosen, and whose are rejected.

    python -m larpo_jax.sweep --config experiments/more_is_less/sources.py:cpu \
      --workdir runs/sources --seeds 5
    python -m larpo_jax.report runs/sources

More is Less (https://arxiv.org/abs/2504.02193) aligns six models by plain DPO on pairs that differ
in where they come from. Attack success rates, lower is better, read off the figure of its
repository (https://github.com/cacayaya/More-is-Less), with Llama-3.1-8B and Mistral-7B-v0.1:

    supervised                                        .56  .34
    HC+Self       a person over own greedy            .64  .31
    GPT4o+Self    GPT-4o over own greedy              .56  .30
    Stronger+Self a larger model over own greedy      .50  .33
    Peer+RM       best and worst of peers' by reward  .26  .03
    All+RM        best and worst of all by reward     .30  .04
    Original      the data set's pairs                .27  .04
    Self+RM       best and worst of five own          .16  .01

The reason that it gives: pairs of several models differ in surface, the loss falls without what
was to be taught. Here a pair's sources are one setting, rounds.prefer: of several sources the first
is chosen over the next whatever the reward says, of one or of all the reward decides. The person
(human) writes the world's demonstrations, of which a quarter are wrong or hasty; the teacher (gold)
is always right, and writes "17 + 5 = 22" where the policy writes "17+5=22". A larger model that
shares the tokenizer is rounds.teacher=dict(paths=("runs/larger/export",)), and then
rounds.prefer=("teacher", "greedy"); "Original" is a run on a data set, without rounds.

`sweep_style` controls for the surface: the teacher in the policy's own style, and pairs by reward
with the style put on whatever is best. All have the same steps on batches of as many pairs. In
metrics.jsonl candidates/separable is what a linear probe makes of the counts of tokens in chosen
and rejected (0.5 is chance), and the loss of each step its speed; `style` among the results is the
share of the policy's lines that have a space.

Measured at `:cpu`, five seeds each, on two busy CPU cores, 8 minutes and 6. Reward of samples: 0.40
before; 0.68 HC+Self, 0.37 GPT4o+Self, 0.65 Peer+RM, 0.67 All+RM, 0.69 Self+RM. The teacher in the
policy's own style 0.72; own pairs by reward with the style put on the chosen 0.39. Supported
at this scale, of the surface: it takes the loss to 0.001 in eight steps. Attacks, which the paper
measures, have no counterpart here. docs/results.md has the tables.
"""

from experiments import common
from experiments.larpo import objectives


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  rounds = config.rounds
  # Offline: sampled once, as many prompts and steps as objectives.py has in its three rounds.
  rounds.update(count=1, prompts=3 * rounds.prompts, steps_per_round=3 * rounds.steps_per_round)
  rounds.update(greedy=True, candidates=6, human=1, gold=True, prefer=("self",), styled=())
  rounds.update(lists=dict(name="lists.best_worst"), dedupe=True)
  rounds.max_tokens = 48  # the teacher's style is longer
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """The sources of the paper's table that this world has."""
  yield {"rounds.prefer": ("human", "greedy"), "rounds.styled": ()}  # HC+Self
  yield {"rounds.prefer": ("gold", "greedy"), "rounds.styled": ("gold",)}  # GPT4o+Self
  yield {"rounds.prefer": ("human",), "rounds.human": 5, "rounds.styled": ()}  # Peer+RM
  yield {"rounds.prefer": (), "rounds.styled": ("gold",)}  # All+RM
  yield {"rounds.prefer": ("self",), "rounds.styled": ()}  # Self+RM


def sweep_style():
  """The same quality in one style and in two."""
  for prefer in (("gold", "greedy"), (), ("self",)):
    styled = ("gold",) if prefer[:1] == ("gold",) else ("best",)
    yield {"rounds.prefer": prefer, "rounds.styled": ()}
    yield {"rounds.prefer": prefer, "rounds.styled": styled}


def sweep_frontier():
  """The teacher in two styles, and own samples, at three strengths of the reference."""
  arms = [
    {"rounds.prefer": ("gold", "greedy"), "rounds.styled": style} for style in (("gold",), ())
  ]
  arms.append({"rounds.prefer": ("self",), "rounds.styled": ()})
  return common.at_betas(arms, betas=(0.1, 1.0, 3.0))
