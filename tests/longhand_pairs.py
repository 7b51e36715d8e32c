"""pairwise.*, margins.* and reference_free.*, longhand: see longhand.py for the words."""

import math

from longhand import ls, lse, mean, of_list, of_pair, relu, sigmoid, softplus

BETA = (0.003, 1.0)
EPS = (0.0, 0.45)


@of_pair("pairwise.dpo", beta=BETA)
def dpo(w, l, beta):
  return softplus(-beta * (w.rho - l.rho))


@of_pair("pairwise.cdpo", beta=BETA, label_smoothing=EPS)
def cdpo(w, l, beta, label_smoothing):
  z = beta * (w.rho - l.rho)
  return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


@of_pair("pairwise.ipo", beta=BETA)
def ipo(w, l, beta):
  return (w.rho / w.n - l.rho / l.n - 1 / (2 * beta)) ** 2


@of_pair("pairwise.ipo_sum", beta=BETA)
def ipo_sum(w, l, beta):
  return (w.rho - l.rho - 1 / (2 * beta)) ** 2


@of_pair("pairwise.hinge", beta=BETA)
def hinge(w, l, beta):
  return relu(1 - beta * (w.rho - l.rho))


@of_pair("pairwise.simpo", beta=(0.1, 10.0), gamma=(0.0, 3.0))
def simpo(w, l, beta, gamma):
  return softplus(-(beta * (w.a - l.a) - gamma))


@of_pair("pairwise.sigmoid_norm", beta=(0.1, 10.0))
def sigmoid_norm(w, l, beta):
  return softplus(-beta * (w.rho / w.n - l.rho / l.n))


@of_pair("pairwise.exo", beta=BETA, label_smoothing=(1e-4, 0.4))
def exo(w, l, beta, label_smoothing):
  z = beta * (w.rho - l.rho)
  return sigmoid(z) * (ls(z) - math.log(1 - label_smoothing)) + sigmoid(-z) * (
    ls(-z) - math.log(label_smoothing)
  )


@of_pair("pairwise.nca", beta=BETA)
def nca(w, l, beta):
  return -ls(beta * w.rho) - 0.5 * ls(-beta * w.rho) - 0.5 * ls(-beta * l.rho)


@of_pair("pairwise.bco_pair", beta=BETA)
def bco_pair(w, l, beta):
  return -ls(beta * w.rho) - ls(-beta * l.rho)


@of_pair("pairwise.sppo_hard", beta=BETA)
def sppo_hard(w, l, beta):
  return (w.rho - 0.5 / beta) ** 2 + (l.rho + 0.5 / beta) ** 2


@of_pair("pairwise.apo_zero", beta=BETA)
def apo_zero(w, l, beta):
  return 1 - sigmoid(beta * w.rho) + sigmoid(beta * l.rho)


@of_pair("pairwise.apo_down", beta=BETA)
def apo_down(w, l, beta):
  return sigmoid(beta * w.rho) + 1 - sigmoid(beta * (w.rho - l.rho))


@of_pair("pairwise.discopop", beta=BETA, tau=(0.02, 0.5))
def discopop(w, l, beta, tau):
  z = beta * (w.rho - l.rho)
  m = sigmoid(z / tau)
  return (1 - m) * softplus(-z) + math.exp(ls(z / tau) - z)


@of_pair("margins.dpop", beta=BETA, penalty=(0.5, 50.0))
def dpop(w, l, beta, penalty):
  return softplus(-beta * (w.rho - l.rho - penalty * relu(w.q - w.p)))


@of_pair("margins.r_dpo", beta=BETA, alpha=(0.0, 0.3))
def r_dpo(w, l, beta, alpha):
  return softplus(-(beta * (w.rho - l.rho) + alpha * (w.n - l.n)))


@of_pair("margins.odpo", beta=BETA, alpha=(0.0, 3.0))
def odpo(w, l, beta, alpha):
  gap = max(w.score - l.score, 1e-3)
  return softplus(-(beta * (w.rho - l.rho) - alpha * math.log(gap)))


@of_pair("margins.dpo_shift", beta=BETA, shift=(0.3, 1.0))
def dpo_shift(w, l, beta, shift):
  return softplus(-beta * (w.rho - shift * l.rho))


@of_pair("margins.minor_dpo", beta=BETA)
def minor_dpo(w, l, beta):
  return softplus(-beta * (w.rho - relu(l.rho)))


@of_pair("margins.focalpo", beta=BETA, gamma=(0.0, 2.0))
def focalpo(w, l, beta, gamma):
  z = beta * (w.rho - l.rho)
  return -math.exp(gamma * ls(z)) * ls(z)


@of_pair("margins.chi_po", beta=(0.003, 0.3), limit=[0.0, 1.0, 5.0])
def chi_po(w, l, beta, limit):
  phi = lambda rho: math.exp(min(rho, 20.0)) + rho  # noqa: E731
  z = beta * phi(w.rho) - beta * phi(l.rho)
  if limit:
    z = min(max(z, -2 * limit), 2 * limit)
  return softplus(-z)


@of_pair("margins.cal_dpo", beta=BETA, calibration=(0.1, 1.0))
def cal_dpo(w, l, beta, calibration):
  squares = (w.rho - 1 / (2 * beta)) ** 2 + (l.rho + 1 / (2 * beta)) ** 2
  return softplus(-(w.rho - l.rho)) + calibration * squares


@of_pair("margins.npo", beta=BETA)
def npo(w, l, beta):
  return -2 / beta * ls(-beta * l.rho)


@of_pair("margins.spin", beta=BETA)
def spin(w, l, beta):
  return softplus(-beta * (w.rho - l.rho))


@of_pair("reference_free.cpo", beta=BETA, sft=(0.0, 2.0))
def cpo(w, l, beta, sft):
  return softplus(-beta * (w.p - l.p)) - sft * w.a


@of_pair("reference_free.slic", delta=(0.1, 5.0), sft=(0.0, 1.0))
def slic(w, l, delta, sft):
  return relu(delta - w.p + l.p) - sft * w.p


@of_pair("reference_free.orpo", beta=(0.05, 2.0))
def orpo(w, l, beta):
  odds = lambda y: y.a - math.log(-math.expm1(y.a))  # noqa: E731
  return -w.a - beta * ls(odds(w) - odds(l))


@of_pair("reference_free.simper")
def simper(w, l):
  return -math.exp(w.a) + math.exp(l.a)


@of_pair("reference_free.alphapo", beta=(0.1, 5.0), gamma=(0.0, 2.0), alpha=(0.01, 1.0))
def alphapo(w, l, beta, gamma, alpha):
  shape = lambda y: (1 - math.exp(min(-alpha * y.a, 60.0))) / alpha  # noqa: E731
  return softplus(-(beta * (shape(w) - shape(l)) - gamma))


@of_list(
  "reference_free.rrhf",
  rank_weight=(0.5, 100.0),
  length_penalty=(0.0, 1.5),
  flavor=["paper", "code"],
)
def rrhf(row, rank_weight, length_penalty, flavor):
  q = lambda y: y.p / y.n**length_penalty  # noqa: E731
  nll = mean(-y.p if flavor == "paper" else -y.a for y in row.best)
  return rank_weight * sum(relu(q(j) - q(i)) for i, j in row.pairs) + nll


@of_list("reference_free.pro", sft=(0.0, 2.0))
def pro(row, sft):
  total = 0.0
  for y in row.responses:
    if not row.below(y):
      continue
    gaps = [y.score - other.score for other in row.below(y)]
    own = max(gaps) * y.a
    total += lse([own, *(t * other.a for t, other in zip(gaps, row.below(y)))]) - own
  return total - sft * (len(row.responses) - 1) ** 2 * mean(y.p for y in row.best)


@of_pair("reward_models.bradley_terry", margin=(0.0, 2.0), centering=(0.0, 0.5))
def bradley_terry(w, l, margin, centering):
  return softplus(-(w.p - l.p - margin * (w.score - l.score))) + centering * (w.p + l.p) ** 2


@of_list("reward_models.pairwise_preference")
def pairwise_preference(row):
  shares = [relu(label) for label in row.labels]
  if not sum(shares):
    return 0.0
  total = lse([y.p for y in row.responses])
  return -sum(t / sum(shares) * (y.p - total) for t, y in zip(shares, row.responses))
