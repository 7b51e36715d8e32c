"""scored.*, exploration.* and tokenwise.*, longhand: see longhand.py for the words."""

import math

from longhand import ls, mean, of_list, of_pair, relu, sigmoid, softplus

BETA = (0.003, 1.0)


@of_pair("scored.soft_label", beta=BETA, temperature=(0.1, 5.0))
def soft_label(w, l, beta, temperature):
  z, p = beta * (w.rho - l.rho), sigmoid((w.score - l.score) / temperature)
  return -p * ls(z) - (1 - p) * ls(-z)


@of_pair("scored.reward_distillation", beta=BETA)
def reward_distillation(w, l, beta):
  return (beta * (w.rho - l.rho) - (w.score - l.score)) ** 2


@of_pair("scored.rebel", eta=(0.1, 100.0))
def rebel(w, l, eta):
  return (w.rho - l.rho - eta * (w.score - l.score)) ** 2


@of_pair("scored.rpo_squared", beta=BETA, eta=(0.1, 10.0))
def rpo_squared(w, l, beta, eta):
  return (beta * (w.rho - l.rho) - eta * (w.score - l.score)) ** 2


def bernoulli_kl(a, b):
  """KL between two outcomes whose log-odds are a and b."""
  return sigmoid(a) * (ls(a) - ls(b)) + sigmoid(-a) * (ls(-a) - ls(-b))


@of_pair("scored.rpo_backward_kl", beta=BETA, eta=(0.1, 10.0))
def rpo_backward_kl(w, l, beta, eta):
  return bernoulli_kl(eta * (w.score - l.score), beta * (w.rho - l.rho))


@of_pair("scored.rpo_forward_kl", beta=BETA, eta=(0.1, 10.0))
def rpo_forward_kl(w, l, beta, eta):
  return bernoulli_kl(beta * (w.rho - l.rho), eta * (w.score - l.score))


@of_pair("scored.rank_conditioned", beta=BETA)
def rank_conditioned(w, l, beta):
  return relu(w.score - l.score) * softplus(-beta * (w.rho - l.rho))


@of_list("scored.sppo", beta=BETA)
def sppo(row, beta):
  def off(y):
    wins = mean(sigmoid(y.score - other.score) for other in row.responses)
    return (y.rho - (wins - 0.5) / beta) ** 2

  return mean((off(w) + off(l)) / 2 for w, l in row.ends)


def madpo_scale(h, c_max, c_min, steepness, tau, side):
  odds = (c_max - 1) / (1 - c_min) * math.exp(steepness * (abs(h) - tau))
  c = c_min + (c_max - c_min) / (1 + odds)
  return {"full": c, "amplify": max(c, 1.0), "regularise": min(c, 1.0)}[side]


MADPO = dict(
  beta=BETA,
  c_max=[2.0, 4.0],
  c_min=[0.5, 0.25, 0.5],
  steepness=(0.3, 3.0),
  tau=(0.3, 5.0),
  side=["full", "amplify", "regularise"],
)


@of_pair("scored.madpo", **MADPO, cutoff=[True, False])
def madpo(w, l, beta, cutoff, tau, **shape):
  h = w.score - l.score
  c = madpo_scale(h, tau=tau, **shape)
  weight = 1.0 if cutoff and h <= -tau else sigmoid(c * h) / sigmoid(h)
  return weight * softplus(-beta * (w.rho - l.rho))


@of_pair("scored.madpo_margin", **MADPO)
def madpo_margin(w, l, beta, **shape):
  return softplus(-beta * (w.rho - l.rho) / madpo_scale(w.score - l.score, **shape))


def explored(row):
  return [y for y in row.responses if y.importance is None or y.importance > 0]


def ends(row, beta):
  return mean(softplus(-beta * (w.rho - l.rho)) for w, l in row.ends)


@of_list("exploration.selm", beta=BETA, alpha=(1e-4, 1.0))
def selm(row, beta, alpha):
  return ends(row, beta) + alpha * beta * mean(y.rho for y in explored(row))


@of_list("exploration.xpo", beta=BETA, alpha=(1e-5, 1.0))
def xpo(row, beta, alpha):
  return ends(row, beta) + alpha * mean(y.p for y in explored(row))


@of_list("exploration.copo", beta=BETA, alpha=(1e-4, 1.0), scale=(0.05, 1.0), largest=(0.5, 10.0))
def copo(row, beta, alpha, scale, largest):
  def bonus(y):
    novelty = 1.0 if y.importance is None else y.importance
    ratio = math.exp(min(y.held.rho, 50.0))
    return min(ratio, largest) * scale * novelty * y.p

  return ends(row, beta) - alpha * mean(bonus(y) for y in explored(row))


@of_pair("tokenwise.tdpo1", beta=BETA)
def tdpo1(w, l, beta):
  return softplus(-beta * (w.rho - l.rho + sum(w.kl) - sum(l.kl)))


@of_pair("tokenwise.tdpo2", beta=BETA, alpha=(0.0, 1.0))
def tdpo2(w, l, beta, alpha):
  return softplus(-beta * (w.rho - l.rho + alpha * (sum(w.kl) - sum(l.kl))))


def ratios(y):
  return [p - q for p, q in zip(y.policy, y.reference)]


@of_pair("tokenwise.rrpo", beta=BETA, alpha=(0.0, 1.0))
def rrpo(w, l, beta, alpha):
  inside = lambda y: sum(x for x, i in zip(ratios(y), y.span) if i > 0)  # noqa: E731
  return softplus(-beta * (inside(w) - inside(l))) + alpha * sum(w.kl)


@of_pair("tokenwise.ddpo", beta=BETA, gamma=(0.5, 10.0))
def ddpo(w, l, beta, gamma):
  def dense(y):
    weight = [1.0 if y.span is None or i == 0 else gamma for i in (y.span or y.policy)]
    return y.n * sum(t * x for t, x in zip(weight, ratios(y))) / sum(weight)

  return softplus(-beta * (dense(w) - dense(l)))


@of_list("tokenwise.sampo", beta=BETA)
def sampo(row, beta, kept):
  """kept(response): which of its tokens are."""
  over = lambda y: sum(ratios(y)[t] for t in kept(y))  # noqa: E731
  return mean(softplus(-beta * (over(w) - over(l))) for w, l in row.ends)


@of_list("tokenwise.step_dpo", beta=BETA)
def step_dpo(row, beta):
  """The prefix is that of the whole list: what else a pair shares is as likely in both."""
  alike = lambda t: len({tuple(y.ids[:t]) for y in row.responses}) == 1  # noqa: E731
  shared = max(t for t in range(1 + min(y.n for y in row.responses)) if alike(t))
  after = lambda y: sum(ratios(y)[shared:])  # noqa: E731
  return mean(softplus(-beta * (after(w) - after(l))) for w, l in row.ends)
