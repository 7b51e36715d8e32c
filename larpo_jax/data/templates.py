"""A conversation -> text by the tokenizer's chat template, which is a stranger's program."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import time
from typing import Any

from transformers import PreTrainedTokenizerBase

from larpo_jax.data.problems import BadRow

SECONDS = 1.0  # that one rendering may take
MEBIBYTES = 1  # that a rendering may add to what it was given
MEMORY = 1 << 28  # bytes that the trial may take

# The trial runs in a process of its own, under limits that the system enforces: a template can
# write `{{ 'A' * 10**9 }}` or loop for ever, and the Jinja sandbox stops neither. What the template
# otherwise does wrong is for the real rendering to say.
_TRIAL = r"""
import json, os, re, resource, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment
template, conversations, names, memory, seconds = json.loads(sys.stdin.read())
if os.path.exists("/proc/self/statm"):
  with open("/proc/self/statm") as file:
    memory += int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
used = resource.getrusage(resource.RUSAGE_SELF)
limit = int(used.ru_utime + used.ru_stime) + 1 + int(seconds)
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
environment = ImmutableSandboxedEnvironment(
  trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
environment.globals["raise_exception"] = lambda message: 1 / 0
environment.globals["strftime_now"] = lambda form: "now"
environment.filters["tojson"] = lambda value, **options: json.dumps(value)
template = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
for conversation in conversations:
  for opens in (False, True):
    try:
      text = environment.from_string(template).render(
        messages=conversation, add_generation_prompt=opens, tools=None, **names
      )
      print(len(text))
    except MemoryError:
      raise
    except Exception:
      pass
"""


def render(
  tokenizer: PreTrainedTokenizerBase,
  conversation: list[dict[str, Any]],
  tools: list[Any] | None,
  *,
  generation: bool,
) -> str:
  """The text of a conversation; generation opens the assistant's next turn.

  Raises BadRow("template") where the template refuses it, and ValueError where what it makes of it
  is out of all proportion or took seconds.
  """
  started = time.monotonic()
  try:
    text = str(
      tokenizer.apply_chat_template(
        conversation, tools=tools, tokenize=False, add_generation_prompt=generation
      )
    )
  except Exception as error:  # a template raises what it likes: jinja's errors, TypeError, KeyError
    raise BadRow("template", f"{type(error).__name__}: {error}"[:300]) from None
  given = sum(len(str(turn)) for turn in conversation) + len(str(tools))
  took = time.monotonic() - started
  if len(text) > 4 * given + (MEBIBYTES << 20) or took > 5 * SECONDS:
    raise ValueError(
      f"the chat template made {len(text)} characters of {given} in {took:.1f} s: refused;"
      " give another with tokenizer.chat_template"
    )
  return text


def require(tokenizer: PreTrainedTokenizerBase) -> None:
  """Raises ValueError unless the tokenizer has a chat template that keeps within limits."""
  template = tokenizer.chat_template
  if not template:
    raise ValueError(
      f"the tokenizer {tokenizer.name_or_path!r} has no chat template, and the data holds "
      "conversations: give one with tokenizer.chat_template, or use an instruction-tuned tokenizer"
    )
  names = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if value}
  for each in template.values() if isinstance(template, dict) else (template,):
    _try(each, json.dumps({k: v for k, v in names.items() if k.endswith("_token")}, sort_keys=True))


@functools.cache
def _try(template: str, names: str) -> None:
  """Renders two conversations in a child process; ValueError where that has to be cut off."""
  turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  given = (template, [turns, turns[:1]], json.loads(names), MEMORY, SECONDS)
  try:
    child = subprocess.run(
      [sys.executable, "-c", _TRIAL],
      input=json.dumps(given),
      capture_output=True,
      text=True,
      timeout=60,  # the child's own limits are in CPU seconds, and the machine may be busy
    )
    failed = child.returncode != 0
  except subprocess.TimeoutExpired:
    failed = True
  if failed or max(map(int, child.stdout.split()), default=0) > MEBIBYTES << 20:
    digest = hashlib.sha256(template.encode()).hexdigest()[:12]
    raise ValueError(
      f"the chat template {digest} takes more than {SECONDS:.0f} s, {MEMORY >> 20} MiB or"
      f" {MEBIBYTES} MiB of output for two words: refused; set tokenizer.chat_template"
    )
