"""listwise.*, targets.* and pointwise.*, longhand: see longhand.py for the words."""

import math

from longhand import ls, lse, mean, of_batch, of_list, of_prompt, relu, softmax, softplus

BETA = (0.003, 1.0)
REDUCTION = ["sum", "mean_pairs", "mean_items"]


def among_worse(row, y, beta):
  """-log of the share that y has among itself and all that it beats."""
  return lse([beta * y.rho, *(beta * other.rho for other in row.below(y))]) - beta * y.rho


def reduced(total, row, reduction):
  return total / {"sum": 1, "mean_pairs": len(row.pairs), "mean_items": len(row.labels)}[reduction]


@of_list("listwise.contrastive", beta=BETA)
def contrastive(row, beta):
  return mean(among_worse(row, y, beta) for y in row.best)


@of_list("listwise.lambdarank", beta=BETA, reduction=REDUCTION)
def lambdarank(row, beta, reduction):
  total = sum(softplus(-beta * (i.rho - j.rho)) for i, j in row.pairs)
  return reduced(total, row, reduction)


@of_list("listwise.listmle", beta=BETA, reduction=REDUCTION)
def listmle(row, beta, reduction):
  return reduced(sum(among_worse(row, y, beta) for y in row.responses), row, reduction)


@of_list("listwise.lipo_lambda", beta=BETA)
def lipo_lambda(row, beta):
  def rank(y):  # equal in all, they share the mean of their places
    places = [(-x.held.rho, x.label) for x in row.responses]
    own = (-y.held.rho, y.label)
    return sum(other < own for other in places) + (1 + sum(other == own for other in places)) / 2

  gain = lambda y: 2.0**y.label - 1  # noqa: E731
  discount = lambda y: math.log(1 + rank(y))  # noqa: E731
  return sum(
    abs(gain(i) - gain(j))
    * abs(1 / discount(i) - 1 / discount(j))
    * softplus(-beta * (i.rho - j.rho))
    for i, j in row.pairs
  )


def above(row, y):
  return [other for other in row.responses if other.label > y.label]


@of_list(
  "listwise.code_contrastive",
  beta=BETA,
  positives=[1, 2],
  negatives=[2, 1, 3],
  label_smoothing=(0.0, 0.5),
)
def code_contrastive(row, beta, positives, negatives, label_smoothing):
  top = [y for y in row.responses if len(above(row, y)) < positives]
  bottom = [y for y in row.responses if len(row.below(y)) < negatives]

  def one(y, other):
    total, own = lse([beta * y.rho, *other]), beta * y.rho
    return (1 - label_smoothing) * (total - own) + label_smoothing * (total - lse(other))

  rivals = [(y, [beta * other.rho for other in bottom if other.label < y.label]) for y in top]
  return mean(one(y, other) for y, other in rivals if other)


@of_list("listwise.code_matched_pairs", beta=BETA, pairs=[2, 1])
def code_matched_pairs(row, beta, pairs):
  """Equal labels share a place from the top and one from the bottom."""
  matched = [
    (i, j)
    for i, j in row.pairs
    if len(above(row, i)) == len(row.below(j)) and len(above(row, i)) < pairs
  ]
  return mean(softplus(-beta * (i.rho - j.rho)) for i, j in matched)


@of_list("targets.infonca", beta=BETA, temperature=(0.05, 5.0))
def infonca(row, beta, temperature):
  q = softmax([y.label / temperature for y in row.responses])
  total = lse([beta * y.rho for y in row.responses])
  return -sum(share * (beta * y.rho - total) for share, y in zip(q, row.responses))


@of_list("targets.nca", beta=BETA, temperature=(0.05, 5.0))
def nca(row, beta, temperature):
  q = softmax([y.label / temperature for y in row.responses])
  return -sum(
    share * ls(beta * y.rho) + ls(-beta * y.rho) / len(q) for share, y in zip(q, row.responses)
  )


@of_list("targets.listnet", beta=BETA)
def listnet(row, beta):
  shares = [relu(label) for label in row.labels]
  total = lse([beta * y.rho for y in row.responses])
  if not sum(shares):
    return 0.0
  return -sum(t / sum(shares) * (beta * y.rho - total) for t, y in zip(shares, row.responses))


@of_list("targets.swepo", beta=BETA, alpha=(0.0, 3.0))
def swepo(row, beta, alpha):
  middle = mean(row.labels)
  weighed = lambda y: beta * y.rho + alpha * abs(y.label - middle)  # noqa: E731
  good = [y for y in row.responses if y.label > middle]
  return lse([weighed(y) for y in row.responses]) - lse([weighed(y) for y in good])


@of_list("targets.multi_positive", beta=BETA)
def multi_positive(row, beta):
  return swepo(row, beta, 0.0)


@of_prompt("pointwise.sft")
def sft(row):
  return mean(-y.a for y in row.best)


@of_batch("pointwise.sft_tokens")
def sft_tokens(rows):
  """The mean of the batch; where several are best, their mean."""
  rows = [row for row in rows if row.weight and row.responses]
  total = sum(mean(y.p for y in row.best) for row in rows)
  return -total / sum(mean(y.n for y in row.best) for row in rows)
