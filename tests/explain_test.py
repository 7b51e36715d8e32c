"""What is said of losses: all of it for every one, and true where the answer is known."""

import inspect
from pathlib import Path
import re
import subprocess
import sys

from kernels import KERNELS, NAMES, WRAPPERS
import matplotlib.image
import numpy as np
import pytest

from larpo_jax.config.fields import FIELDS
from larpo_jax.data import readers
from larpo_jax.explain import __main__ as cli
from larpo_jax.explain import cases, measured, pages, plots, subject

DOCS = Path(__file__).parent.parent / "docs"
KNOWN = {  # reads best, middle, worst; margins only; sums or means; falls for ever
  "pairwise.dpo": ("bw", True, "sum", ()),
  "pairwise.nca": ("bw", False, "sum", ()),
  "pairwise.ipo": ("bw", True, "mean", ()),
  "pairwise.ipo_sum": ("bw", True, "sum", ()),
  "pairwise.simpo": ("bw", True, "mean", ()),
  "margins.r_dpo": ("bw", True, "", ()),
  "margins.npo": ("w", False, "sum", ()),
  "reference_free.cpo": ("bw", False, "", ()),
  "listwise.listmle": ("bmw", True, "sum", ()),
  "targets.nca": ("bmw", False, "sum", ()),
  "pointwise.sft": ("b", False, "mean", ()),
  "unpaired.kto": ("bmw", False, "sum", ()),
  "batchwise.bco_pair_shift": ("bw", False, "sum", ()),
  "exploration.xpo": ("bmw", False, "sum", (1,)),
  "wrappers.robust(pairwise.dpo)": ("bw", True, "sum", (1,)),
  "wrappers.robust(pairwise.ipo)": ("bw", True, "mean", ()),
}


def facts(name):
  return measured.facts(subject.parse(name).kernel)


def failed(capsys, *argv):
  """The one line that a mistake ends in."""
  assert cli.main(argv) == 1
  out, error = capsys.readouterr()
  assert not out
  assert error.startswith("larpo_jax: error: ")
  assert error.count("\n") == 1
  return error


@pytest.mark.parametrize("name", KNOWN)
def test_measured_is_what_is_known(name):
  reads, margin_only, length, falls = KNOWN[name]
  found = facts(name)
  assert "".join(place[0] for place in found.reads) == reads
  assert found.margin_only == margin_only
  assert (found.by_sum, found.by_mean) == (length == "sum", length == "mean")
  assert found.falls == falls
  assert found.verdicts == (name == "unpaired.kto")


def test_another_response_can_count_though_its_log_prob_does_not():
  assert facts("scored.sppo").counts_middle
  assert "middle" not in facts("scored.sppo").reads
  assert "others by their scores" in " ".join(pages.behaviour(subject.parse("scored.sppo")))
  assert not facts("pairwise.dpo").counts_middle


def test_measured_is_at_the_hyper_parameters_that_are_given():
  robust = subject.parse("wrappers.robust(pairwise.hinge)")
  assert measured.facts(robust.kernel).falls
  assert not measured.facts(subject.given(robust, {"epsilon": 0.0}).kernel).falls


def test_a_curve_is_the_formula_and_its_slopes():
  margins = np.linspace(-60, 60, 7)
  found = measured.curve(subject.parse("pairwise.dpo").kernel, margins)
  np.testing.assert_allclose(found.loss, np.log1p(np.exp(-0.1 * margins)), rtol=1e-5, atol=1e-6)
  slope = -0.1 / (1 + np.exp(0.1 * margins))
  np.testing.assert_allclose(found.slope, slope, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(found.chosen, slope, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(found.rejected, -slope, rtol=1e-4, atol=1e-7)
  free = measured.curve(subject.parse("pairwise.simpo").kernel, margins)
  z = 2.0 * margins / measured.LENGTH - 1.0
  np.testing.assert_allclose(free.loss, np.log1p(np.exp(-z)), rtol=1e-5)
  unlike = measured.curve(subject.parse("margins.npo").kernel, margins)
  assert not unlike.chosen.any()
  assert (unlike.rejected > 0).all()


@pytest.mark.parametrize("margin", [-1e4, -60.0, 0.0, 60.0, 1e4])
def test_no_log_prob_of_a_case_exceeds_0(margin):
  token = np.full((2, 8), -1.25)
  found = cases.apart(token, margin)
  assert found.max() <= 0
  assert found[0].sum() - found[1].sum() == pytest.approx(margin)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_explained(name):
  loss = subject.parse(name)
  text = " ".join(pages.page(loss).split())
  for title in subject.SECTIONS:
    assert loss.section(title) in text
  for key, default in loss.values.items():
    assert f"{key}={subject.shown(default)}" in text
  assert f"config.loss = {loss.node()}" in text
  node = eval(loss.node(), {"__builtins__": {"dict": dict, "float": float}})
  assert subject.lookup.resolve(node, subject.PACKAGE)  # it can be pasted into a config
  assert "nan" not in text.split()


def test_needs_and_settings_are_those_of_the_attributes():
  text = {name: pages.page(subject.parse(name)) for name in ("pairwise.dpo", "unpaired.bco")}
  assert "  a reference" in text["pairwise.dpo"]
  assert "whole batch" not in text["pairwise.dpo"]
  assert "whole batch: with accumulation two passes" in text["unpaired.bco"]
  assert "carries statistics from step to step, in the checkpoint" in text["unpaired.bco"]
  assert "readers.unpaired(importance=...)" in text["unpaired.bco"]
  settings = {name: dict(subject.parse(name).settings()) for name in KERNELS}
  assert list(settings["tokenwise.rrpo"]) == ["config.data.spans = True"]
  assert list(settings["tokenwise.ddpo"]) == ["config.data.spans = True"]
  assert list(settings["unpaired.kto"]) == ["config.data.mismatched = True"]
  assert not settings["pairwise.dpo"]
  assert "collision" not in subject.parse("wrappers.robust").attribute("needs", ())
  assert any("p^2" in need for need in subject.parse("wrappers.wpo").needs())


def test_settings_exist():
  for name in KERNELS:
    for setting, _ in subject.parse(name).settings():
      for key in re.findall(r"^config\.([\w.]+)", setting):
        assert key in FIELDS
      for reader, columns in re.findall(r"readers\.(\w+)\(([^)]*)\)", setting):
        for column in columns.split(", "):
          known = inspect.signature(getattr(readers, reader)).parameters
          assert column.removesuffix("=...") in known


def test_a_wrapper_is_explained_with_its_kernel(capsys):
  assert cli.main(["wrappers.robust(pairwise.ipo)", "--set", "beta=0.5", "epsilon=0.2"]) == 0
  text = capsys.readouterr().out
  node = 'dict(name="wrappers.robust", epsilon=0.2, kernel=dict(name="pairwise.ipo", beta=0.5))'
  assert f"config.loss = {node}" in text
  for name in ("wrappers.robust", "pairwise.ipo"):
    assert f"{name}: {subject.parse(name).section('Formula')[:40]}" in text
  outer = subject.given(subject.parse("wrappers.ld_dpo(margins.r_dpo)"), {"kernel.alpha": 0.02})
  assert (outer.values["alpha"], outer.inner.values["alpha"]) == (0.5, 0.02)


def test_without_names_all_are_listed(capsys):
  assert cli.main([]) == 0
  text = capsys.readouterr().out
  for name in NAMES:
    assert re.search(rf"^  {re.escape(name)} +\S", text, re.MULTILINE), name


def test_mistakes_end_in_one_sentence(capsys):
  assert "did you mean 'pairwise.simpo'?" in failed(capsys, "pairwise.simp")
  assert "wraps nothing" in failed(capsys, "pairwise.dpo(pairwise.ipo)")
  assert "neither a name" in failed(capsys, "wrappers.robust(pairwise.ipo")
  assert "did you mean 'beta'?" in failed(capsys, "pairwise.dpo", "--set", "betta=1")
  assert "KEY=VALUE" in failed(capsys, "pairwise.dpo", "--set", "beta")
  assert "above 0" in failed(capsys, "pairwise.dpo", "--set", "beta=-1")
  assert "statistics" in failed(capsys, "wrappers.robust(unpaired.bco)")
  assert "1 to 6" in failed(capsys, *["pairwise.dpo"] * 7, "--plot", "a.png")
  assert ".png" in failed(capsys, "pairwise.dpo", "--plot", "a.pdf")


def test_the_command_exits_with_the_code_and_no_traceback():
  command = [sys.executable, "-m", "larpo_jax.explain", "pairwise.simp"]
  found = subprocess.run(command, capture_output=True, text=True, check=False)
  assert found.returncode == 1
  assert "did you mean 'pairwise.simpo'?" in found.stderr
  assert "Traceback" not in found.stderr


def test_a_plot_has_a_column_of_three_for_each_loss(tmp_path, capsys):
  names = ["pairwise.dpo", "pairwise.ipo_sum"]
  drawn = plots.figure([subject.parse(name) for name in names])
  assert [axes.get_title().split("\n")[0] for axes in drawn.axes[:2]] == names
  assert [len(axes.get_lines()) for axes in drawn.axes] == [3, 3, 3, 3, 4, 4]  # two are zeros
  path = tmp_path / "both.png"
  assert cli.main([*names, "--plot", str(path)]) == 0
  assert str(path) in capsys.readouterr().out
  image = matplotlib.image.imread(path)[..., :3]
  colours = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in plots.PALETTE[:3]]
  for half in np.array_split(image, 2, axis=1):  # every curve, on both sides
    assert all((np.abs(half - colour).max(-1) < 0.01).sum() > 100 for colour in colours)


def test_panels_of_a_row_share_an_axis_where_they_are_of_a_size():
  drawn = plots.figure([subject.parse(name) for name in ("pairwise.dpo", "pairwise.bco_pair")])
  for left, right in zip(drawn.axes[::2], drawn.axes[1::2]):
    assert left.get_ylim() == right.get_ylim()
  drawn = plots.figure([subject.parse(name) for name in ("pairwise.dpo", "pairwise.ipo_sum")])
  assert drawn.axes[0].get_ylim() != drawn.axes[1].get_ylim()


def test_the_page_is_current():
  remedy = "python -m larpo_jax.explain --markdown > docs/losses.md"
  assert (DOCS / "losses.md").read_text() == pages.markdown(), f"out of date: {remedy}"


def test_the_page_shows_pictures_that_exist_and_links_to_its_sections():
  text = (DOCS / "losses.md").read_text()
  shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
  assert sorted(shown) == sorted(pages.PICTURES)
  assert all((DOCS / name).is_file() for name in shown)
  anchors = {re.sub(r"[^\w]", "", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
  links = re.findall(r"\]\(#([^)]+)\)", text)
  assert len(links) == len(set(links)) == len(NAMES)
  assert set(links) <= anchors
  assert {name.replace(".", "") for name in WRAPPERS} < set(links)
