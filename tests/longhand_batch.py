"""batchwise.*, unpaired.* and wrappers.*, longhand: see longhand.py for the words."""

from dataclasses import replace
import math

from longhand import FORMULAS, ls, mean, moved, of_batch, of_prompt, sigmoid, softplus

BETA = (0.003, 1.0)
WEIGHTS = dict(desirable_weight=(0.2, 3.0), undesirable_weight=(0.2, 3.0))


def pair_rows(rows):
  return [row for row in rows if row.weight and row.ends]


def smoothed(z, eps):
  return -(1 - eps) * ls(z) - eps * ls(-z)


@of_batch("batchwise.aot", beta=BETA, label_smoothing=(0.0, 0.45))
def aot(rows, beta, label_smoothing):
  """The total of the batch."""
  at = [
    (mean(w.p - l.p for w, l in row.ends), mean(w.q - l.q for w, l in row.ends))
    for row in pair_rows(rows)
  ]
  policy, reference = (sorted(column) for column in zip(*at))
  return sum(smoothed(beta * (p - q), label_smoothing) for p, q in zip(policy, reference))


@of_batch("batchwise.aot_unpaired", beta=BETA, label_smoothing=(0.0, 0.45))
def aot_unpaired(rows, beta, label_smoothing):
  """The total of the batch."""
  at = [(mean(y.rho for y in r.best), mean(y.rho for y in r.worst)) for r in pair_rows(rows)]
  chosen, rejected = (sorted(column) for column in zip(*at))
  return sum(smoothed(beta * (w - l), label_smoothing) for w, l in zip(chosen, rejected))


@of_batch("batchwise.dr_dpo", beta=BETA, temperature=(0.2, 5.0))
def dr_dpo(rows, beta, temperature):
  losses = [mean(softplus(-beta * (w.rho - l.rho)) for w, l in r.ends) for r in pair_rows(rows)]
  least = min(losses)
  soft = least - temperature * math.log(mean(math.exp((least - x) / temperature) for x in losses))
  return [soft if row.ends else 0.0 for row in rows]


@of_batch(
  "batchwise.beta_dpo",
  beta=BETA,
  alpha=(0.0, 1.0),
  drop=(0.0, 0.7),
  momentum=(0.5, 0.95),
  smallest=(1e-3, 0.1),
  init=["corrected", "zero", "first"],
  dropped=["unusual", "widest", "narrowest"],
  scope=["batch", "pair"],
  unit=["nats", "rewards"],
)
def beta_dpo(rows, beta, alpha, drop, momentum, smallest, init, dropped, scope, unit, kept, centre):
  """Given which prompts are kept, and the running mean of the gaps, this batch's included."""
  del drop, momentum, init, dropped  # what `kept` and `centre` follow from
  gap = [mean(w.rho - l.rho for w, l in row.ends) for row in rows]
  middle = mean(x for x, is_kept in zip(gap, kept) if is_kept)
  share = len(pair_rows(rows)) / sum(kept)

  def loss(x):
    ahead = (x if scope == "pair" else middle) - centre
    used = max(beta * (1 + alpha * ahead * (beta if unit == "rewards" else 1.0)), smallest)
    return softplus(-used * x) * share

  return [loss(x) if is_kept else 0.0 for x, is_kept in zip(gap, kept)]


@of_batch("batchwise.bco_pair_shift", beta=BETA)
def bco_pair_shift(rows, beta, earlier=()):
  """earlier: what `pair_rewards` says of the steps before this one."""
  delta = mean([*earlier, *pair_rewards(rows, beta)])
  terms = lambda w, l: -ls(beta * w.rho - delta) - ls(delta - beta * l.rho)  # noqa: E731
  return [mean(terms(w, l) for w, l in row.ends) for row in rows]


def pair_rewards(rows, beta):
  """The mean reward of each prompt's pair; where several tie, the mean over them."""
  return [
    mean(beta * (w.held.rho + l.held.rho) / 2 for w, l in row.ends) for row in pair_rows(rows)
  ]


def verdicts(row):
  return [y for y in row.responses if y.label != 0]


@of_prompt("unpaired.apo_zero_unpaired", beta=BETA, **WEIGHTS)
def apo_zero_unpaired(row, beta, desirable_weight, undesirable_weight):
  return mean(
    desirable_weight * (1 - sigmoid(beta * y.rho))
    if y.label > 0
    else undesirable_weight * sigmoid(beta * y.rho)
    for y in verdicts(row)
  )


@of_batch("unpaired.kto", beta=BETA, **WEIGHTS)
def kto(rows, beta, desirable_weight, undesirable_weight):
  others = [[y.held.rho for y in row.responses if y.label == 0] for row in rows if row.weight]
  kl = max(0.0, mean(mean(one) for one in others if one))  # one voice a prompt

  def one(y):
    if y.label > 0:
      return desirable_weight * (1 - sigmoid(beta * (y.rho - kl)))
    return undesirable_weight * (1 - sigmoid(beta * (kl - y.rho)))

  return [mean(one(y) for y in verdicts(row)) for row in rows]


@of_batch("unpaired.bco", beta=BETA, smallest=(0.3, 0.9), largest=(1.1, 10.0))
def bco(rows, beta, smallest, largest, earlier=()):
  delta = mean([*earlier, *verdict_rewards(rows, beta)])

  def one(y):
    if y.label > 0:
      return -ls(beta * y.rho - delta)
    density = 1.0 if y.importance is None else min(max(y.importance, smallest), largest)
    return -density * ls(delta - beta * y.rho)

  return [mean(one(y) for y in verdicts(row)) for row in rows]


def verdict_rewards(rows, beta):
  return [beta * y.held.rho for row in rows if row.weight for y in verdicts(row)]


@of_batch("unpaired.dro", tau=(0.05, 3.0))
def dro(rows, tau):
  rest = lambda y: y.label - tau * y.rho  # noqa: E731
  fixed = lambda y: y.label - tau * y.held.rho  # noqa: E731
  alone = lambda row: len(row.responses) == 1  # noqa: E731
  common = mean(fixed(row.responses[0]) for row in rows if row.weight and alone(row))

  def one(row):
    value = common if alone(row) else mean(fixed(y) for y in row.responses)
    return mean(0.5 * (rest(y) - value) ** 2 for y in row.responses)

  return [one(row) for row in rows]


PAIRS = ("pairwise.dpo", "pairwise.ipo")


def wraps(wrapper, inner, **hyper_parameters):
  """Registers f(prompts, kernel, **hyper_parameters), kernel the formula that is wrapped."""

  def register(f):
    def losses(rows, beta, **h):
      return f(rows, lambda x: FORMULAS[inner].losses(x, beta=beta), **h)

    of_batch(f"{wrapper}({inner})", beta=BETA, **hyper_parameters)(losses)
    return f

  return register


def both(wrapper, **hyper_parameters):
  def register(f):
    for inner in PAIRS:
      wraps(wrapper, inner, **hyper_parameters)(f)
    return f

  return register


def turned(row):
  return replace(row, responses=[replace(y, label=-y.label) for y in row.responses])


@both("wrappers.robust", epsilon=(0.0, 0.4))
def robust(rows, kernel, epsilon):
  there, back = kernel(rows), kernel([turned(row) for row in rows])
  return [((1 - epsilon) * x - epsilon * y) / (1 - 2 * epsilon) for x, y in zip(there, back)]


@both("wrappers.smoothed", epsilon=(0.0, 0.5))
def conservative(rows, kernel, epsilon):
  there, back = kernel(rows), kernel([turned(row) for row in rows])
  return [(1 - epsilon) * x + epsilon * y for x, y in zip(there, back)]


@both("wrappers.distributionally_robust", temperature=(0.2, 5.0))
def distributionally_robust(rows, kernel, temperature):
  counted = [x for x, row in zip(kernel(rows), rows) if row.weight and row.ends]
  least = min(counted)
  soft = least - temperature * math.log(mean(math.exp((least - x) / temperature) for x in counted))
  return [soft if row.ends else 0.0 for row in rows]


@both("wrappers.with_sft", sft=(0.0, 3.0))
def with_sft(rows, kernel, sft):
  nll = [mean(-y.a for y in row.best) if row.ends else 0.0 for row in rows]
  return [x + sft * y for x, y in zip(kernel(rows), nll)]


@both("wrappers.wpo", largest=[1.0, math.inf, 0.3])
def wpo(rows, kernel, largest):
  sure = lambda y: mean(p - c for p, c in zip(y.held.policy, y.collision))  # noqa: E731

  def weight(row):
    total = mean(sure(y) for y in row.best) + mean(sure(y) for y in row.worst)
    return min(largest, math.exp(min(total, 700.0)))

  return [weight(row) * x if row.ends else 0.0 for row, x in zip(rows, kernel(rows))]


@both("wrappers.ld_dpo", alpha=(0.0, 1.0))
def ld_dpo(rows, kernel, alpha):
  def shorter(row):
    least = min((y.n for y in row.responses), default=0)
    cut = lambda x: [t if i < least else alpha * t for i, t in enumerate(x)]  # noqa: E731
    return moved([row], lambda y: (cut(y.policy), cut(y.reference)))[0]

  return kernel([shorter(row) for row in rows])


def diverging(rows, score):
  """The rows with score(rho) in place of rho."""
  none = lambda y: [0.0] * (y.n - 1)  # noqa: E731
  return moved(rows, lambda y: ([score(y.rho), *none(y)], [0.0, *none(y)]))


@both("wrappers.forward_kl")
def forward_kl(rows, kernel):
  return kernel(diverging(rows, lambda rho: 1 - math.exp(min(-rho, 80.0))))


@both("wrappers.js_divergence")
def js_divergence(rows, kernel):
  return kernel(diverging(rows, lambda rho: math.log(2) + ls(rho)))


@both("wrappers.alpha_divergence", alpha=[0.5, 0.0, 0.9, 2.0])
def alpha_divergence(rows, kernel, alpha):
  def score(rho):
    return (math.exp(min((alpha - 1) * rho, 80.0)) - 1) / (alpha - 1)

  return kernel(diverging(rows, score))
