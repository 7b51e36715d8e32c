"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
import hashlib
import pathlib
import re

import jinja2
from markupsafe import Markup, escape

from larpo_jax import workdir as files
from larpo_jax.report.sections import Section

HERE = pathlib.Path(__file__).parent


def html(title: str, sections: Sequence[Section]) -> str:
  """The whole page. All text from data is escaped, and the page may run its own script alone."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(rich=rich, drawn=Markup, plain=files.plain)
  script = (HERE / "page.js").read_text(encoding="utf-8")
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return environment.get_template("page.html.j2").render(
    title=title,
    sections=sections,
    script=Markup(script),
    digest=digest,
    style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
  )


def rich(text: str) -> Markup:
  """A sentence, with names in backticks as code and ** as bold."""
  found = Markup("")
  for i, part in enumerate(text.split("`")):
    if i % 2:
      found += Markup("<code>{}</code>").format(part)
    else:
      found += Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(part))))
  return found
