"""The world of attributes: each is measured as it is said, and demonstrations lack each of them."""

import numpy as np
import pytest

from larpo_jax.worlds import attributes

PROMPT = "about fox moon river, not rain, 6 words:"
FULL = dict(topics=1.0, order=1.0, clean=1.0, length=1.0, distinct=1.0)


@pytest.mark.parametrize(
  ("text", "lacks"),
  [
    ("the fox near moon and river", {}),
    ("  fox moon river\nthe a\tnear ", {}),
    ("the fox near moon and stone", dict(topics=2 / 3, order=1 / 2)),
    ("the stone near moon and river", dict(topics=2 / 3, order=1 / 2)),
    ("the fox near stone and river", dict(topics=2 / 3, order=0.0)),
    ("the moon near fox and river", dict(order=1 / 2)),
    ("the river near moon and fox", dict(order=0.0)),
    ("rain fox near moon and river", dict(clean=0.0)),
    ("the fox near moon river", dict(length=5 / 6)),
    ("the fox near moon and river again", dict(length=5 / 6)),
    ("the fox near moon and river a an it is was", dict(length=1 / 6)),
    ("the fox near moon and river a an it is was so too much", dict(length=0.0)),
    ("fox fox moon and and river", dict(distinct=4 / 6)),
    ("fox near moon and river fox", dict(distinct=5 / 6)),
    ("the Fox near moon, and river", dict(topics=1 / 3, order=0.0)),
    ("very very", dict(topics=0.0, order=0.0, length=2 / 6, distinct=1 / 2)),
    ("", dict.fromkeys(FULL, 0.0)),
    (" \n ", dict.fromkeys(FULL, 0.0)),
  ],
)
def test_attributes_of_texts_written_by_hand(text, lacks):
  found = attributes.attributes(PROMPT, text)
  wanted = FULL | lacks
  assert found._asdict() == pytest.approx(wanted)
  total = sum(weight * wanted[name] for name, weight in attributes.WEIGHTS.items())
  assert attributes.gold([PROMPT], [[text]]).item() == pytest.approx(total, rel=1e-6)
  assert attributes.accuracy([PROMPT], [[text]]).item() == (not lacks)


def test_weights_are_of_the_attributes_and_sum_to_one():
  assert tuple(attributes.WEIGHTS) == attributes.Attributes._fields
  assert sum(attributes.WEIGHTS.values()) == pytest.approx(1)


def test_of_one_topic_the_order_is_that_it_is_there():
  prompt = "about fox, not rain, 6 words:"
  assert attributes.attributes(prompt, "fox").order == 1
  assert attributes.attributes(prompt, "the").order == 0


@pytest.mark.parametrize(
  "text",
  [
    "about fox fox, not rain, 6 words:",
    "about fox, not fox, 6 words:",
    "about the, not rain, 6 words:",
    "about fox, not rain, 13 words:",
    "about fox, not rain, 06 words:",
    "about fox moon river tree lamp, not rain, 6 words:",
    "fox",
  ],
)
def test_what_asks_for_no_text_of_this_world_is_said(text):
  with pytest.raises(ValueError, match="asks for no text of this world"):
    attributes.parse(text)


@pytest.mark.parametrize("topics", [1, 2, 3, 4])
def test_careful_demonstrations_have_everything_and_others_lack_each_thing_now_and_then(
  topics, seed
):
  how = dict(seed=seed, topics=topics, very=0.0)
  careful = attributes.demonstrations(300, slip=0.0, **how)
  assert len({d.response for d in careful}) > 250
  for each in careful:
    assert min(attributes.attributes(each.prompt, each.response)) == 1, each
  careless = attributes.demonstrations(600, slip=1.0, **how)
  found = np.array([attributes.attributes(d.prompt, d.response) for d in careless])
  assert ((found < 1).mean(axis=0) > 0.2).all(), "each attribute"
  assert ((found == 1).mean(axis=0) > 0.15).all()
  half = attributes.demonstrations(600, slip=0.5, **how)
  lacking = np.mean([min(attributes.attributes(d.prompt, d.response)) < 1 for d in half])
  assert 0.35 < lacking < 0.62  # 1 - 2**-5 of a half, or a little less where two flaws make none


def test_very_stands_as_often_as_asked_and_is_what_a_proxy_likes(seed):
  for very in (0.0, 0.2, 1.0):
    shown = attributes.demonstrations(1000, seed=seed, slip=0.0, very=very)
    words = [word for d in shown for word in d.response.split()]
    free = [word for word in words if word not in attributes.NOUNS]
    assert free.count("very") / len(free) == pytest.approx(very, abs=0.04)  # 7 standard errors
    shares = [attributes.showiness(d.response) for d in shown]
    assert np.mean(shares) == pytest.approx(very * len(free) / len(words), abs=0.04)
  assert attributes.showiness("very quiet") == attributes.showiness(" very  very a the ") == 0.5
  assert attributes.showiness("") == 0
