r"""Shows what a run will train on: tokens with their masks, what was cut, lengths, bad rows.

    python -m larpo_jax.inspect --config experiments/real/ranked_answers.py --rows 3

Green is trained on, yellow is read but not trained on, dim is the prompt; a box drawn around a
token marks one that stands for no text, such as <eos>.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import itertools
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from larpo_jax.data import batching, dataset, truncation
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.store import TokenizedData

BARS = 40  # characters of the longest bar
STYLES = {"prompt": "dim", "trained": "black on green", "context": "black on yellow"}


def show(
  data: TokenizedData,
  tokenizer: PreTrainedTokenizerBase,
  console: Console,
  *,
  rows: int = 3,
  batch_size: int = 8,
  static_shapes: int = 4,
) -> None:
  """Prints everything there is to know of tokenised data."""
  console.rule(f"{len(data)} lists of up to {data.candidates} responses, {data.report.source}")
  for index in range(min(rows, len(data))):
    show_row(data, index, tokenizer, console)
  console.print(truncation.table(data.report))
  lengths = {"prompt": data.prompt_lengths, "response": data.all_lengths()}
  for name, values in lengths.items():
    if len(values):
      console.print(histogram(name, values))
  console.print(shapes(data, batch_size, static_shapes))
  console.print(problems(data))


def show_row(
  data: TokenizedData, index: int, tokenizer: PreTrainedTokenizerBase, console: Console
) -> None:
  """Prints one list: its prompt, and each response with its label."""
  tokens = data[index]
  console.print(f"[bold]row {index}[/] (row {int(data.sources[index])} of the source)")
  console.print(_text(tokenizer, tokens.prompt, itertools.repeat("prompt")))
  for k, (ids, mask, label) in enumerate(zip(tokens.responses, tokens.masks, tokens.labels)):
    trained = f"{int(mask.sum())} of {len(ids)} tokens trained on"
    console.print(f"[bold]label {label:g}[/], {trained}{_beside(tokens, k)}")
    console.print(_text(tokenizer, ids, ("trained" if on else "context" for on in mask)))
  console.print()


def _beside(tokens: Tokens, k: int) -> str:
  """What else is known of a response, where the data brings it."""
  known = {"score": tokens.scores, "importance": tokens.importance}
  parts = [f", {name} {values[k]:g}" for name, values in known.items() if values is not None]
  if tokens.spans is not None:
    span = tokens.spans[k]
    parts.append(f", {int(span.max(initial=0))} edited spans of {int((span > 0).sum())} tokens")
  return "".join(parts)


def histogram(name: str, lengths: np.ndarray) -> Table:
  """Lengths in tokens, an octave a row, shorter ones together."""
  edges = 2 ** np.arange(max(int(np.ceil(np.log2(max(lengths.max(), 1)))), 3) + 1)
  counts, _ = np.histogram(lengths, np.concatenate([[0], edges[3:] + 1]))
  median, high = np.percentile(lengths, [50, 95])
  title = f"{name} tokens: median {median:.0f}, 95% up to {high:.0f}, longest {lengths.max()}"
  table = Table("up to", "count", "", title=title, title_justify="left")
  for edge, count in zip(edges[3:], counts):
    table.add_row(f"{edge}", f"{count}", "█" * int(np.ceil(BARS * count / counts.max())))
  return table


def shapes(data: TokenizedData, batch_size: int, limit: int) -> Table:
  """The static shapes of the batches, and how much of them is padding."""
  plan = batching.schedule(data, batch_size=batch_size, shapes=limit)
  title = f"{plan.per_epoch} batches of {batch_size} an epoch"
  table = Table("prompt", "response", "batches", "padding", title=title, title_justify="left")
  batches = [plan[step] for step in range(plan.per_epoch)]
  for P, R in plan.shapes:
    rows = [rows[rows >= 0] for rows, shape, _ in batches if shape == (P, R)]
    real = sum(int(data.row_lengths[r].sum()) for r in rows)
    whole = len(rows) * batch_size * (P + data.candidates * R)
    padding = f"{1 - real / whole:.0%}" if whole else "-"
    table.add_row(f"{P}", f"{R}", f"{len(rows)}", padding)
  return table


def problems(data: TokenizedData) -> Table:
  """Rows that were not kept, and what is worth knowing of those that were."""
  report = data.report
  title = f"{report.kept} of {report.rows} rows kept"
  table = Table("what", "rows", "first", title=title, title_justify="left")
  first: dict[str, str] = {}
  for row in data.rejected():
    first.setdefault(row["kind"], f"{row['where']} {row['detail']}"[:120])
  for kind, count in report.rejected.most_common():
    table.add_row(kind, f"{count}", first.get(kind, ""))
  told = ("prompt", "response", "candidates_thinned", "conversations")
  for kind, count in report.notes.most_common():
    if not kind.startswith(told):
      table.add_row(f"(kept) {kind.replace('_', ' ')}", f"{count}", "")
  return table


def _text(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, kinds: Iterable[str]) -> Text:
  text = Text()
  special = set(tokenizer.all_special_ids)
  for token, kind in zip(ids.tolist(), kinds):
    shown = str(tokenizer.decode([token])).replace("\n", "⏎\n")
    if token in special:
      text.append(f"[{shown}]", style=f"{STYLES[kind]} bold")
    else:
      text.append(shown, style=STYLES[kind])
  return text


def run(
  config: Mapping[str, Any], console: Console, *, rows: int = 3, which: str = "train"
) -> None:
  """Prepares the data that a config names, and shows it; raises what its parts raise."""
  given = config.get("tokenizer") or {}
  path = given.get("path") or config["model"].get("path")
  if not path:
    raise ValueError("neither tokenizer.path nor model.path is set: whose tokens?")
  tokenizer = tokenizers.load(path, chat_template=given.get("chat_template") or "")
  data = dataset.from_node(config["data"], tokenizer, which)
  sizes = dict(batch_size=config["data"].get("batch_size", 8))
  sizes["static_shapes"] = config["data"].get("shapes", 4)
  show(data, tokenizer, console, rows=rows, **sizes)


if __name__ == "__main__":
  from absl import app, flags
  from ml_collections import config_flags

  _CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE.py[:ARGUMENT]")
  _ROWS = flags.DEFINE_integer("rows", 3, "How many lists to print.")
  _WHICH = flags.DEFINE_enum("which", "train", ["train", "test"], "Which part of the data.")

  def main(argv: list[str]) -> int:
    """A user's mistake ends in one sentence."""
    if len(argv) > 1:
      raise app.UsageError(f"stray words: {' '.join(argv[1:])}; an override is --config.KEY=VALUE")
    try:
      run(_CONFIG.value.to_dict(), Console(), rows=_ROWS.value, which=_WHICH.value)
    except (ValueError, OSError) as error:
      print(f"larpo_jax: error: {error}", file=sys.stderr)
      return 1
    return 0

  flags.mark_flag_as_required("config")
  app.run(main)
