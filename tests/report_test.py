"""The report of a sweep: what it says, and every file that it writes."""

import configparser
import csv
import html.parser
import json
import pathlib
import re
import xml.etree.ElementTree

from matplotlib import colormaps
import numpy as np
from PIL import Image
import pytest
import synthetic_sweep

from larpo_jax.report import __main__ as main
from larpo_jax.report import (
  collect,
  drawing,
  findings,
  latex,
  markdown,
  samples,
  sections,
  statistics,
  tables,
)

REPORT = pathlib.Path(main.__file__).parent
NASTY = (
  """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'`|&$x_1$\\%{}--> a=\n**b**"""
)


def sweep(directory, arms, metric="gold/reward"):
  """A finished sweep: arm -> {seed: value}; None has not finished."""
  index = []
  for point, (arm, values) in enumerate(arms.items()):
    for seed, value in values.items():
      name = f"loss={arm},seed={seed}"
      index.append(dict(name=name, point=point, seed=seed, varies={"loss": arm}))
      if value is not None:
        (directory / name / "results").mkdir(parents=True)
        summary = {"before": {metric: 0.0, "length": 1.0}, "after": {metric: value, "length": 2.0}}
        (directory / name / "results" / "summary.json").write_text(json.dumps(summary))
  directory.mkdir(exist_ok=True)
  (directory / "sweep.json").write_text(json.dumps(index))
  return directory


def report(directory, **options):
  """The report without its plots."""
  found = findings.find(directory, **options)
  parts = sections.sections(found, [], samples.samples(found.runs, 4))
  return markdown.text(sections.title(found), parts)


def test_the_report_says_which_is_better(tmp_path, capsys):
  arms = {
    "dpo": {0: 0.50, 1: 0.55, 2: 0.60},
    "lambdarank": {0: 0.60, 1: 0.66, 2: 0.70},
    "listmle": {0: 0.40, 1: 0.70, 2: None},
  }
  directory = sweep(tmp_path / "objectives", arms)
  assert main.main([str(directory)]) == 0
  text = (directory / "report.md").read_text()
  said = capsys.readouterr().out
  assert text.split("## Plots")[0] in said
  assert "`loss=lambdarank` - `loss=dpo`: +0.103 gold reward [" in text
  assert "n = 3 seeds: better" in text
  assert "`loss=listmle` - `loss=dpo`: +0.025 gold reward [" in text
  assert "no difference was shown" in text
  assert "**1 run is missing**: loss=listmle,seed=2" in text
  rows = list(csv.DictReader((directory / "results.csv").open()))
  assert len(rows) == 8
  assert rows[3] == {
    "loss": "lambdarank", "seed": "0", "before gold/reward": "0.0", "after gold/reward": "0.6",
    "before length": "1.0", "after length": "2.0",
  }  # fmt: skip


def test_the_first_sentence_is_the_answer(tmp_path):
  values = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.51, 0.6, 0.7, 0.82], "c": [0.1, 0.22, 0.3, 0.4]}
  arms = {arm: dict(enumerate(each)) for arm, each in values.items()}
  first = report(sweep(tmp_path / "clear", arms)).split("\n\n")[1]
  assert first.startswith("Use `loss=b`: its gold reward, 0.657 on average over 4 seeds, is higher")
  close = report(sweep(tmp_path / "close", {**arms, "d": {0: 0.5, 1: 0.62, 2: 0.69, 3: 0.81}}))
  assert close.split("\n\n")[1].startswith("Use `loss=b`, or `loss=d`:")
  same = report(sweep(tmp_path / "same", {"a": arms["a"], "c": arms["c"]}))
  assert same.split("\n\n")[1].startswith("No best arm was shown: `loss=c` has the highest")
  assert "With the baseline alone" not in same
  alone = report(sweep(tmp_path / "alone", {"a": {0: 0.5}, "b": {0: 0.9}}))
  assert "may be chance: run the sweep again with --seeds 5" in alone
  assert "of one seed: nothing is certain" in alone
  assert "One arm, nothing to compare" in report(sweep(tmp_path / "one", {"a": arms["a"]}))


def test_the_first_sentence_says_what_the_baseline_alone_shows(tmp_path):
  """Fewer comparisons share the 5 % with the baseline than with every other arm."""
  spread = (-1.2, -0.6, 0.0, 0.6, 1.2)
  around = lambda centre, scale, turn: {  # noqa: E731
    seed: centre + scale * spread[(seed + turn) % 5] for seed in range(5)
  }
  arms = {"a": around(0.0, 0.0, 0), "b": around(0.2, 0.1075, 0)}
  arms |= {"c": around(0.1, 0.3, 1), "d": around(0.1, 0.3, 2)}
  p = statistics.contrast(arms["b"], arms["a"]).p
  assert 0.05 / 6 < p < 0.05 / 3
  said = report(sweep(tmp_path, arms)).split("\n\n")[1]
  assert said.startswith("No best arm was shown: `loss=b` has the highest")
  assert f"With the baseline alone, `loss=a`, it is shown: p = {3 * p:.2g}." in said


def test_the_report_corrects_for_the_number_of_arms(tmp_path):
  values = {0: 0.1, 1: 0.2, 2: 0.35}
  arms = {"a": {0: 0.0, 1: 0.0, 2: 0.0}, "b": values, "c": values}
  p = statistics.contrast(values, arms["a"]).p
  text = report(sweep(tmp_path, arms))
  assert f"p = {2 * p:.2g}," in text
  assert f"p = {p:.2g}," not in text


def test_another_baseline_turns_the_signs(tmp_path):
  arms = {"a": {0: 0.1, 1: 0.2, 2: 0.31}, "b": {0: 0.5, 1: 0.61, 2: 0.7}}
  directory = sweep(tmp_path, arms)
  assert "`loss=b` - `loss=a`: +0.4" in report(directory)
  turned = report(directory, baseline="loss=b")
  assert "`loss=a` - `loss=b`: -0.4" in turned
  assert "worse" in turned


def test_runs_that_ended_in_nan_are_told_of_and_left_out(tmp_path):
  arms = {"a": {0: 0.1, 1: 0.2}, "b": {0: float("nan"), 1: 0.5}, "c": {0: float("nan")}}
  text = report(sweep(tmp_path, arms))
  assert "**2 runs ended in nan and are in no comparison**: loss=b,seed=0, loss=c,seed=0" in text
  assert "`loss=b` - `loss=a`: +0.3 gold reward, of one seed" in text


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--metric=beauty"], "the runs have: gold/reward, length"),
    (["--baseline=x"], "loss=a; loss=b"),
    (["--compare"], "--compare takes the workdirs of two runs"),
  ],
)
def test_mistakes_are_said_in_a_sentence(options, message, tmp_path, capsys):
  directory = sweep(tmp_path / "sweep", {"a": {0: 1.0}, "b": {0: 2.0}})
  assert main.main([str(directory), *options]) == 1
  assert message in capsys.readouterr().err
  assert main.main([str(tmp_path)]) == 1
  assert "no sweep.json" in capsys.readouterr().err
  (directory / "sweep.json").write_text("[{")
  assert main.main([str(directory)]) == 1
  assert "sweep.json is no JSON" in capsys.readouterr().err


def test_means_of_the_lines_are_the_summary(tmp_path, seed):
  arms = [({"loss": "dpo"}, 0.1, 0.2)]
  synthetic_sweep.write(tmp_path / "s", arms, seeds=2, rng=np.random.default_rng(seed))
  for run in collect.runs(tmp_path / "s")[0]:
    for metric in ("gold/reward", "gold/accuracy", "kl", "length"):
      values = [value for value, _ in collect.prompts(run, metric).values()]
      assert np.mean(values) == pytest.approx(run.after[metric])


@pytest.fixture(scope="module")
def written(tmp_path_factory, module_seed):
  """A report of two numeric axes and one of words, with everything that runs write."""
  effects = {
    (loss, beta, rate): gain + 0.2 * beta
    for loss, gain in (("dpo", 0.0), (NASTY, 0.1))
    for beta in (0.1, 0.5)
    for rate in (1.0, 2.0)
  }
  arms = [
    (dict(zip(("loss", "beta", "rate"), each)), gain, 0.2 + each[1])
    for each, gain in effects.items()
  ]
  directory = tmp_path_factory.mktemp("report") / "grid"
  rng = np.random.default_rng(module_seed)
  synthetic_sweep.write(directory, arms, seeds=3, prompts=12, rounds=2, rng=rng, text=NASTY)
  found, parts = main.write(directory, samples=9)
  return directory, found, parts


def test_every_file_is_written(written):
  directory, _, parts = written
  (plots,) = [part.plots for part in parts if part.plots]
  names = {plot.name for plot in plots}
  assert {"arms", "frontier", "learning", "gap", "displacement", "margins", "length"} <= names
  assert {"axis_0", "frontier_axis_0", "map_0", "map_1"} <= names
  text = (directory / "report.md").read_text()
  for name in names:
    with Image.open(directory / "plots" / f"{name}.png") as image:
      assert image.width > 500
      assert len(np.unique(np.asarray(image.convert("L")))) > 10, f"{name} is empty"
    assert f"(plots/{name}.png)" in text
  (box,) = [part.samples for part in parts if part.samples]
  assert (len(box.prompts), box.total) == (9, 36)
  assert "9 of 36 test prompts" in text
  assert (directory / "report.html").stat().st_size < 1e6


class Page(html.parser.HTMLParser):
  """What a browser would see: tags with their attributes, and text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_data(self, data):
    self.text += data


def test_names_and_answers_cannot_add_anything_to_the_page(written):
  directory, _, _ = written
  page = Page((directory / "report.html").read_text())
  scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
  assert scripts == ["application/json", None]
  assert not [tag for tag, _ in page.tags if tag in ("iframe", "object", "embed", "form", "base")]
  assert not [tag for tag, _ in page.tags if tag == "img"]
  for tag, attributes in page.tags:
    assert not [name for name in attributes if name.startswith("on")], tag
    for name in ("href", "src", "xlink:href"):
      assert attributes.get(name, "#").startswith(("#", "data:")), f"{tag} {name}"
  assert "onerror=alert(2)>" in page.text


def test_plots_in_the_page_are_sound(written):
  _, _, parts = written
  (plots,) = [part.plots for part in parts if part.plots]
  seen = set()
  for plot in plots:
    root = xml.etree.ElementTree.fromstring(plot.svg)
    ids = {each.get("id") for each in root.iter() if each.get("id")}
    assert not ids & seen, "an id is there twice on the page"
    seen |= ids
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg):
      assert target in ids
    assert drawing.INK not in plot.svg
    assert "currentColor" in plot.svg
    texts = ["".join(each.itertext()) for each in root.iter() if each.tag.endswith("text")]
    assert len(texts) > 3, "axes without labels"


def test_latex_is_plain_and_every_row_has_every_column(written):
  directory, found, _ = written
  text = (directory / "table.tex").read_text()
  assert text.isascii()
  columns = re.search(r"\\begin\{tabular\}\{(l+)\}", text)[1]
  rows = [line for line in text.splitlines() if line.endswith(r" \\")]
  assert len(rows) == len(found.arms) + 1
  for row in rows:
    assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    plain = re.sub(r"\\[a-z]+\{\}|\\[{}$&#_%\\]|\$\\pm\$|^\{\}", "", row)
    assert not re.search(r"[{}$#_%^~\\]", plain), plain
  for rule in ("toprule", "midrule", "bottomrule", "end{tabular}"):
    assert text.count(f"\\{rule}") == 1


def test_markdown_has_no_html_and_every_row_every_column(written):
  directory, _, _ = written
  text = (directory / "report.md").read_text()
  outside = re.sub(r"`[^`\n]*`", "", text)
  assert "<" not in outside
  for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
    assert len(counts) == 1, block


def test_only_what_varies_has_a_column():
  rows = [[tables.Cell(name), tables.Cell("5"), tables.Cell(name * 2)] for name in "ab"]
  columns, kept = tables.varying(["arm", "seeds", "p"], rows, always=1)
  assert columns == ["arm", "p"]
  assert [[cell.text for cell in row] for row in kept] == [["a", "aa"], ["b", "bb"]]
  assert latex.latex(tables.Table("t", columns, kept)).count("&") == 3


def test_costs_are_in_their_units(written):
  directory, found, _ = written
  table = tables.costs(found)
  assert "peak memory (MiB)" in table.columns
  place = table.columns.index("peak memory (MiB)")
  assert table.note == "The same for all arms: steps 24, generated tokens (thousands) 200."
  assert [row[place].value for row in table.rows] == [256.0 * (i + 1) for i in range(8)]
  rows = list(csv.DictReader((directory / "results.csv").open()))
  assert float(rows[0]["peak_memory_bytes"]) == 2**28
  synthetic = synthetic_sweep.write(directory.parent / "free", [({}, 0.0, 0.1)], cost=False)
  assert tables.costs(findings.find(synthetic)) is None


def test_samples_are_the_prompts_answers_of_every_arm(written):
  _, found, _ = written
  box = samples.samples(found.runs, 7)
  assert len(box.prompts) <= 7
  for each in box.prompts:
    assert each["prompt"] == f"{each['row']}+{NASTY}"
    assert list(dict.fromkeys(answer["arm"] for answer in each["answers"])) == list(found.arms)
    assert {answer["kind"] for answer in each["answers"]} == {"greedy", "sampled"}
    numbers = [answer["numbers"] for answer in each["answers"] if answer["kind"] == "sampled"]
    assert all(set(n) == {"gold/reward", "logprob", "start_logprob"} for n in numbers)
  assert samples.samples(found.runs, 0).prompts == []


def test_text_can_be_read_on_every_colour_of_a_map():
  def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)

  for share in np.linspace(0, 1, 257):
    colour = colormaps["cividis"](share)[:3]
    text = luminance([float(drawing.readable_on(colour) == "#ffffff")] * 3)
    light, dark = max(text, luminance(colour)), min(text, luminance(colour))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_pages_files_are_installed():
  setup = configparser.ConfigParser()
  setup.read(REPORT.parent.parent / "setup.cfg")
  patterns = setup["options.package_data"]["larpo_jax"].split()
  installed = {path for pattern in patterns for path in REPORT.parent.glob(pattern)}
  others = {path for path in REPORT.iterdir() if path.is_file() and path.suffix != ".py"}
  assert others
  assert others <= installed
