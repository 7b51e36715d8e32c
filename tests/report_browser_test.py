"""The page of a report in a browser: it needs nothing else, its tables and answers can be used."""

import json
import shutil

import numpy as np
import pytest
import synthetic_sweep

from larpo_jax.report import __main__ as main

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
WIDE, PHONE = 1280, 390

CONTRAST = """
const channel = (c) => (c /= 255, c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const parse = (text) => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a];
};
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
    if (colour[3] !== 0) throw new Error("half transparent");
  }
  throw new Error("no background");
};
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode, element = node.parentElement;
  if (!node.textContent.trim() || !element.getClientRects().length) continue;
  if (element.closest("script, style, metadata, [id^='map_']")) continue;
  const style = getComputedStyle(element);
  const text = parse(element.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(text), light(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, node.textContent.trim().slice(0, 40), element.tagName]);
}
return found;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, module_seed):
  """The page of a sweep with every kind of plot, a hostile name, and three seeds."""
  arms = [
    ({"loss": loss, "beta": beta, "rate": rate}, gain + beta / 10, 0.1 + beta)
    for gain, loss in enumerate(("dpo", HOSTILE))
    for beta in (0.1, 0.5, 2.0)
    for rate in (1.0, 2.0)
  ]
  directory = tmp_path_factory.mktemp("browser") / "sweep"
  rng = np.random.default_rng(module_seed)
  synthetic_sweep.write(directory, arms, seeds=3, prompts=6, rounds=2, rng=rng, text=HOSTILE)
  main.write(directory, samples=12)
  return (directory / "report.html").as_uri()


@pytest.fixture
def tab(browser, page):
  """The page, opened in a wide window."""
  shape(browser, WIDE)
  browser.get_log("browser")
  browser.get_log("performance")
  browser.get(page)
  return browser


def shape(browser, width, scheme="light"):
  size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width == PHONE)
  browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
  feature = dict(name="prefers-color-scheme", value=scheme)
  browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[feature]))


def all_of(tab, selector):
  return tab.find_elements("css selector", selector)


def one(tab, selector):
  (found,) = all_of(tab, selector)
  return found


def column(tab, name):
  """The texts of a column of the table of arms, of rows that are shown."""
  heads = [head.text.split()[0] for head in all_of(tab, "#arms th")]
  cells = all_of(tab, f"#arms tbody td:nth-child({heads.index(name) + 1})")
  return [cell.text for cell in cells if cell.is_displayed()]


def test_it_opens_from_a_file_without_network_or_errors(tab, page):
  asked = [json.loads(entry["message"])["message"] for entry in tab.get_log("performance")]
  urls = {each["params"]["request"]["url"] for each in asked
          if each["method"] == "Network.requestWillBeSent"}  # fmt: skip
  assert {url for url in urls if not url.startswith("data:")} == {page}
  assert tab.get_log("browser") == []
  assert tab.title == "sweep: gold reward"
  assert all_of(tab, "#answer p")[0].is_displayed()
  assert tab.execute_script("return window.hacked") is None
  assert all_of(tab, "body img") == []
  assert HOSTILE in one(tab, "body").text


def test_the_page_runs_and_asks_for_nothing_that_was_added(tab):
  tab.execute_script("""
    const script = document.createElement("script");
    script.textContent = "window.hacked = 3";
    document.body.append(script);
    fetch("http://127.0.0.1:9/").catch(() => {});
  """)
  assert tab.execute_script("return window.hacked") is None
  said = [entry["message"] for entry in tab.get_log("browser")]
  for what in ("Executing inline script violates", "Connecting to 'http://127.0.0.1:9/' violates"):
    assert any(what in message for message in said), said


def test_a_click_on_a_column_sorts_and_another_turns_it(tab):
  def numbers():
    return [float(text.split()[0]) for text in column(tab, "gold")]

  before = numbers()
  (head,) = [head for head in all_of(tab, "#arms th") if head.text.startswith("gold")]
  head.find_element("css selector", "button").click()
  assert numbers() == sorted(before, reverse=True) != before
  assert head.get_attribute("aria-sort") == "descending"
  head.find_element("css selector", "button").click()
  assert numbers() == sorted(before)
  assert head.get_attribute("aria-sort") == "ascending"


def test_a_text_column_is_sorted_by_its_text(tab):
  one(tab, "#arms th:first-child button").click()
  losses = column(tab, "loss")
  assert losses == sorted(losses, key=str.casefold, reverse=True)
  assert len(losses) == 12


def test_the_filter_keeps_rows_that_have_its_words(tab):
  field = one(tab, "#arms input")
  field.send_keys("dpo BASELINE")
  assert column(tab, "loss") == ["dpo"]
  field.clear()
  field.send_keys("dpo")
  assert column(tab, "loss") == ["dpo"] * 6
  field.send_keys(" nothing of the sort")
  assert column(tab, "loss") == []


def test_answers_of_another_prompt_and_seed_can_be_chosen(tab):
  def seen():
    return one(tab, "#sample-text").text, one(tab, "#sample-answers").text

  first = seen()
  assert first[0] == f"0+{HOSTILE}"
  assert first[1].count("greedy") == 12
  assert "logprob -3.25" in first[1]
  one(tab, "#sample-next").click()
  assert seen() != first
  one(tab, "#sample-back").click()
  assert seen() == first
  one(tab, "#sample-back").click()  # from the first to the last
  prompts = all_of(tab, "#sample-prompt option")
  assert len(prompts) == 4
  assert prompts[-1].is_selected()
  prompts[2].click()
  assert seen()[0] == f"{prompts[2].text.split(':')[0]}+{HOSTILE}"
  third = seen()
  all_of(tab, "#sample-seed option")[2].click()
  assert seen() != third
  assert tab.execute_script("return window.hacked") is None
  assert tab.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(tab, page, scheme):
  shape(tab, WIDE, scheme)
  found = tab.execute_script(CONTRAST)
  assert len(found) > 300
  assert any(tag == "text" for _, _, tag in found)
  assert min(found)[0] >= 4.5, min(found)
  background = tab.execute_script("return getComputedStyle(document.body).backgroundColor")
  assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_nothing_is_wider_than_the_window(tab, width):
  shape(tab, width)
  sizes = tab.execute_script("""
    const wide = [...document.querySelectorAll("main *")].filter(
      (each) => !each.closest(".scroll, svg, option") &&
        each.getBoundingClientRect().right > innerWidth + 1);
    return [document.documentElement.scrollWidth, innerWidth, wide.map((each) => each.outerHTML)];
  """)
  assert sizes[0] <= sizes[1] == width
  assert sizes[2] == []


def test_plots_can_be_read_on_a_phone(tab):
  shape(tab, PHONE)
  widths = tab.execute_script("""
    return [...document.querySelectorAll("figure svg")].map((each) => each.getBoundingClientRect())
      .map((box) => [box.width, box.height]);
  """)
  assert len(widths) > 10
  assert all(300 < width <= PHONE and height > 60 for width, height in widths)


def test_a_missing_browser_is_named(monkeypatch):
  monkeypatch.setattr(shutil, "which", lambda name: None)
  import conftest

  with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="no browser"):
    conftest.browser_parts()
