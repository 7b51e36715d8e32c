"""What to choose for 1B, 8B and 70B parameters on 8 to 256 chips, as plan finds it: Markdown.

    python scripts/scaling_table.py            # a minute; the table is in docs/scaling.md

DPO on 256 pairs of 512 + 512 tokens in bfloat16, reference cached, AdamW: the fastest mesh,
rematerialisation and number of micro-batches that fit. Estimates; no accelerator has been measured.
"""

from __future__ import annotations

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))

from experiments import common
from larpo_jax import config as configs
from larpo_jax import hardware, plan
from larpo_jax.estimate import Work
from larpo_jax.models import config as config_lib
from larpo_jax.models import transformer

LLAMA = dict(
  model_type="llama", vocab_size=128256, rms_norm_eps=1e-5, max_position_embeddings=8192,
  num_key_value_heads=8, hidden_act="silu", bos_token_id=0, eos_token_id=1, pad_token_id=1,
)  # fmt: skip
SIZES = {
  "1B": dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    tie_word_embeddings=True,
  ),
  "8B": dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32
  ),
  "70B": dict(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
  ),
}  # fmt: skip
CHIPS, COUNTS = ("h100", "v5p", "v5e"), (8, 32, 256)
WORK = Work(prompts=256, responses=2, prompt=512, response=512, room=1536, scored=1024)


def job(size: str, chip: str, count: int) -> plan.Job:
  """DPO with a model of that size."""
  config = common.base()
  config.model.path = "unread"
  config.model.dtype = "bfloat16"
  config.data.batch_size = WORK.prompts
  config.data.train.path = "unread"
  architecture = config_lib.read(LLAMA | SIZES[size])
  model = plan.Model(architecture, transformer.abstract(architecture)[1], None)
  return plan.Job(configs.validate(config), model, [WORK], hardware.machine(chip, count, 0))


def main() -> None:
  """Prints the table."""
  print(
    "| model | chips | mesh | remat | micro-batches | GiB a device | s a step | of it sending |"
  )
  print("|---" * 8 + "|")
  for size in SIZES:
    for chip in CHIPS:
      for count in COUNTS:
        found = plan.fitting(job(size, chip, count))
        cells = ["does not fit, use more chips or adapters", "", "", "", "", ""]
        if found:
          best = found[0]
          mesh = " ".join(f"{axis}={n}" for axis, n in best.mesh.items() if n > 1)
          memory = f"{best.total / 2**30:.0f} of {hardware.CHIPS[chip].memory / 2**30:.0f}"
          cells = [f"`{mesh}`", best.remat, str(best.accumulation), memory]
          cells += [f"{best.seconds:.2g}", f"{best.sending / best.seconds:.0%}"]
        print(f"| {size} | {count} x {chip} | {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
