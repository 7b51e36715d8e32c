"""A manifest of Kubernetes: for every run a JobSet of TPU pods. It is written, not applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import math
import pathlib
import re
import shutil
from typing import Any

import yaml

from larpo_jax.sweep import launch, local
from larpo_jax.sweep import points as points_lib
from larpo_jax.sweep.points import Point

NEEDED = ("image", "accelerator", "topology", "claim")
CHIPS = 4  # of a host, where nothing is said
PORT = 8476
GRACE = 120  # seconds that a pod which is to go has for saving
POOL = "cloud.google.com/gke-nodepool"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def write(
  points: Sequence[Point], directory: pathlib.Path, resources: Mapping[str, str], retries: int = 1
) -> pathlib.Path:
  """Writes DIR/jobset.yaml for the runs that are not done, and returns its path.

  resources: image; accelerator and topology of the TPU slice; chips of one of its hosts; claim, the
  volume claim that holds DIR, at the same path in the pods as here. Raises ValueError where one is
  missing or a mesh does not fit the slice.
  """
  missing = [key for key in NEEDED if not resources.get(key)]
  unknown = sorted(set(resources) - {*NEEDED, "chips"})
  if missing or unknown:
    wrong = f"{missing[0]} is missing" if missing else f"{unknown[0]} is none"
    raise ValueError(f"--resources of a JobSet are {', '.join(NEEDED)} and chips; {wrong}")
  directory = directory.absolute()
  for point in points:
    points_lib.written(point.config, launch.config_path(directory, point))
  shutil.copy(launch.RESOLVED, directory / "configs" / launch.RESOLVED.name)
  left = [point for point in points if not launch.done(directory, point)]
  sets = [jobset(point, directory, resources, retries) for point in left]
  path = directory / "jobset.yaml"
  path.write_text(yaml.safe_dump_all(sets, sort_keys=False))
  return path


def jobset(
  point: Point, directory: pathlib.Path, resources: Mapping[str, str], retries: int
) -> dict[str, Any]:
  """The JobSet of one run: a pod a host, all of them again when one of them ends before its time.

  A run that has saved (exit code 75), or whose node is taken away, is started again without limit;
  one that failed `retries` times.
  """
  hosts, chips = slice_of(resources)
  if hosts * chips % local.device_count(point.config):
    raise ValueError(
      f"{point.name}: a mesh of {local.device_count(point.config)} devices does not fit "
      f"{hosts * chips} chips; set config.mesh or another topology"
    )
  name = _name(directory / point.name)
  job = {
    "parallelism": hosts,
    "completions": hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {"containerName": "run", "operator": "In", "values": [local.SAVED]},
        },
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
      ]
    },
    "template": {"spec": _pod(name, _command(point, directory), directory, resources)},
  }
  go_on = {
    "name": "goOn",
    "action": "RestartJobSetAndIgnoreMaxRestarts",
    "onJobFailureReasons": ["PodFailurePolicy"],
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": name,
      "annotations": {
        "larpo-jax/run": point.name,
        "alpha.jobset.sigs.k8s.io/exclusive-topology": POOL,  # a slice is one run's
      },
    },
    "spec": {
      "failurePolicy": {"maxRestarts": retries, "rules": [go_on]},
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
    },
  }


def slice_of(resources: Mapping[str, str]) -> tuple[int, int]:
  """How many hosts a slice has, and how many chips each of them."""
  topology = resources["topology"]
  if not re.fullmatch(r"\d+(x\d+)+", topology):
    raise ValueError(f"--resources topology={topology}: a topology is written as 4x4 or 2x2x4")
  chips = resources.get("chips", str(CHIPS))
  if not chips.isdigit() or int(chips) < 1:
    raise ValueError(f"--resources chips={chips}: that is no number of chips of a host")
  total = math.prod(map(int, topology.split("x")))
  if total > int(chips) and total % int(chips):
    raise ValueError(f"a topology of {topology} is no number of hosts with {chips} chips each")
  return max(1, total // int(chips)), min(total, int(chips))


def _pod(
  name: str, command: list[str], directory: pathlib.Path, resources: Mapping[str, str]
) -> dict[str, Any]:
  hosts, chips = slice_of(resources)
  limits = {"google.com/tpu": str(chips)}
  container: dict[str, Any] = {
    "name": "run",
    "image": resources["image"],
    "command": command,
    "resources": {"requests": limits, "limits": dict(limits)},
    "volumeMounts": [{"name": "sweep", "mountPath": str(directory)}],
  }
  if hosts > 1:
    container["env"] = [
      {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-slice-0-0.{name}:{PORT}"},
      {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
      {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
    ]
    container["ports"] = [{"containerPort": PORT}]
  return {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": GRACE,
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": resources["accelerator"],
      "cloud.google.com/gke-tpu-topology": resources["topology"],
    },
    "containers": [container],
    "volumes": [
      {"name": "sweep", "persistentVolumeClaim": {"claimName": resources["claim"]}},
    ],
  }


def _command(point: Point, directory: pathlib.Path) -> list[str]:
  """Everything that it reads lies in the sweep's directory; the image has the package."""
  config = f"{directory}/configs/{launch.RESOLVED.name}:{launch.config_path(directory, point)}"
  workdir = f"--workdir={directory / point.name}"
  return ["python", "-m", "larpo_jax.main", f"--config={config}", workdir]


def _name(workdir: pathlib.Path) -> str:
  """A DNS label that leaves room for a pod's suffix: what of the point's name may be in one."""
  digest = hashlib.sha256(str(workdir).encode()).hexdigest()[:8]
  words = re.sub(r"[^a-z0-9]+", "-", workdir.name.lower())[:24].strip("-")
  return f"larpo-{words}-{digest}"
