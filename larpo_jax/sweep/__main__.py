r"""Launches the points of an experiment file, or what is missing of them.

    python -m larpo_jax.sweep --config experiments/quickstart.py --workdir runs/sweep --seeds 3

A file's sweep() yields the points, `--sweep NAME` those of sweep_NAME(); each is run with `--seeds`
seeds in a directory named by what varies. Overrides, --config.KEY=VALUE, are for all points;
--cross loss.beta=0.03,0.1,0.3,1.0 makes each point four, a frontier for every arm that takes it.
Finished points are skipped, half-done ones go on from their checkpoints, failed ones are tried
again `--retries` times. Ctrl-C or SIGTERM stops the jobs, which save; the same command goes on.
Several launchers may work on one directory. Exit codes: 0 all done, 1 some failed, 75 stopped.

`--launcher` says where the runs go, `--jobs` how many at a time, `--resources` what each asks for.

Processes on this machine, each with GPUs of its own:

    python -m larpo_jax.sweep --config FILE --workdir DIR --launcher local --jobs 4

Jobs of Slurm, whose sbatch knows the resources; `pip install 'larpo_jax[launch]'`. Preempted ones,
and those out of time, save and go back to the queue. A launcher that is killed leaves the jobs: the
same command finds them in the queue. More than one task is one run of as many processes:

    python -m larpo_jax.sweep --config FILE --workdir DIR --launcher slurm \
      --resources partition=gpu,time=4:00:00,gpus-per-node=8,ntasks-per-node=8,mem=200G

Ray, on the cluster of RAY_ADDRESS or one started here; `pip install 'larpo_jax[ray]'`. By default a
job has as many GPUs as its mesh devices, where the cluster has any:

    python -m larpo_jax.sweep --config FILE --workdir DIR --launcher ray \
      --resources num_cpus=4,num_gpus=1,memory=16e9

Kubernetes: DIR/jobset.yaml for `kubectl apply`, a JobSet of TPU pods a run. Nothing is launched:

    python -m larpo_jax.sweep --config FILE --workdir DIR --launcher jobset \
      --resources image=IMAGE,claim=VOLUME,accelerator=tpu-v5-lite-podslice,topology=4x4
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from larpo_jax import config as configs
from larpo_jax import preemption, workdir
from larpo_jax.sweep import groups, jobset, launch, points, view
from larpo_jax.sweep.local import Launcher, Local
from larpo_jax.sweep.ray import Ray
from larpo_jax.sweep.slurm import Slurm

_CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE.py[:ARGUMENT]")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all points go; the same one again goes on.")
_SWEEP = flags.DEFINE_string("sweep", "", "sweep_NAME() of the file instead of sweep().")
_CROSS = flags.DEFINE_multi_string(
  "cross", [], "KEY=VALUE,VALUE: every point with each of the values; again for another key."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each point, from config.seed on.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Numbers of points; all by default.")
_LAUNCHER = flags.DEFINE_enum(
  "launcher", "local", ["local", "slurm", "ray", "jobset"], "Where the runs go."
)
_RESOURCES = flags.DEFINE_list("resources", [], "KEY=VALUE: what each run asks the launcher for.")
_TOGETHER = flags.DEFINE_integer(
  "together", 0, "Points in a process at most; 1: alone; 0: 20 of small models.", lower_bound=0
)
_JOBS = flags.DEFINE_integer("jobs", 0, "Jobs at a time; 0: as many as the launcher takes.")
_RETRIES = flags.DEFINE_integer("retries", 1, "How often a failed point is tried again.")
_METRIC = flags.DEFINE_string(
  "metric", "", "What the best is told by; '': gold/reward or accuracy."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the points and launch nothing.")


def main(argv: list[str]) -> int:
  """Launches; a user's mistake ends in one sentence."""
  if len(argv) > 1:
    raise app.UsageError(f"stray words: {' '.join(argv[1:])}; an override is --config.KEY=VALUE")
  console = Console()
  try:
    path, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    only = [int(number) for number in _ONLY.value]
    changes = points.crossed(points.changes(path, _SWEEP.value), _CROSS.value)
    given = (configs.plain(_CONFIG.value), changes, _SEEDS.value)
    found = points.points(*given, only)
    directory = pathlib.Path(str(_WORKDIR.value))
    if _DRY_RUN.value:
      table = Table("point", "seed", "directory")
      for point in found:
        table.add_row(str(point.number), str(point.seed), point.name)
      console.print(table)
      return 0
    directory.mkdir(parents=True, exist_ok=True)
    workdir.write_json(directory / "sweep.json", list(points.index(points.points(*given))))
    return _launched(found, directory, console)
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {configs.redact(str(error))}", file=sys.stderr)
    return 1


def _launched(found: list[points.Point], directory: pathlib.Path, console: Console) -> int:
  resources = dict(_pair(text) for text in _RESOURCES.value)
  if _LAUNCHER.value == "jobset":
    path = jobset.write(found, directory, resources, _RETRIES.value)
    console.print(f"nothing is launched; that does: kubectl apply -f {path}", soft_wrap=True)
    return 0
  launcher = _launcher(directory, resources)
  shared = groups.groups(found, _TOGETHER.value)
  if len(shared) < len(found):
    sizes = ", ".join(str(len(group)) for group in shared)
    console.print(f"{len(found)} runs in {len(shared)} processes, side by side: {sizes}")
  with preemption.Guard() as guard:
    signal.signal(signal.SIGINT, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    shown = view.View(directory, launcher.slots, _METRIC.value, console)
    with shown.drawn:
      statuses = launch.launch(
        shared, directory, launcher, retries=_RETRIES.value, show=shown.show, guard=guard
      )
  view.last_words(directory, statuses, console)
  states = {status.state for status in statuses}
  if states <= {"done"}:
    console.print(f"all {len(statuses)} runs are done: {directory}", soft_wrap=True)
    return 0
  return 1 if "failed" in states else preemption.REQUEUE


def _launcher(directory: pathlib.Path, resources: dict[str, str]) -> Launcher:
  if _LAUNCHER.value == "slurm":
    return Slurm(directory, resources, _JOBS.value)
  if _LAUNCHER.value == "ray":
    return Ray(resources, _JOBS.value)
  if resources:
    raise ValueError("the local launcher takes no --resources; it takes --jobs")
  return Local(_JOBS.value)


def _pair(text: str) -> tuple[str, str]:
  key, _, value = text.partition("=")
  return key, value


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=configs.parse_flags)
