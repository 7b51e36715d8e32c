"""The manifest of TPU pods is a JobSet, what it says of jobs and pods is Kubernetes', and it fits.

The fields of a JobSet are written down here from its public v1alpha2 API: those of them that a
manifest may use, and no others. Jobs and pods are read by Kubernetes' own client: what it does not
know is lost on the way through it. No cluster has run one.
"""

import json
import re

import jsonschema
from kubernetes import client
import pytest
from sweep_points_test import base
import yaml

from larpo_jax import preemption
from larpo_jax.sweep import jobset, launch, points, resolved

RESOURCES = {"image": "registry/larpo:1", "claim": "runs", "accelerator": "tpu-v5-lite-podslice"}
CHANGES = [{"steps": 1}, {"steps": 2}]


def node(required=(), **properties):
  return dict(
    type="object", properties=properties, required=list(required), additionalProperties=False
  )


TEXT, NUMBER, YES_OR_NO = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
RULE = node(
  ("name", "action"),
  name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
  action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
  onJobFailureReasons={
    "type": "array",
    "items": {
      "enum": [
        *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
        *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
      ]
    },
  },
  targetReplicatedJobs=TEXTS,
)
REPLICATED = node(
  ("name", "template"),
  name=TEXT,
  groupName=TEXT,
  replicas=NUMBER,
  template={"type": "object"},
)
SPEC = node(
  replicatedJobs={"type": "array", "items": REPLICATED},
  network=node(enableDNSHostnames=YES_OR_NO, subdomain=TEXT, publishNotReadyAddresses=YES_OR_NO),
  failurePolicy=node(
    maxRestarts=NUMBER,
    restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
    rules={"type": "array", "items": RULE},
  ),
  successPolicy=node(("operator",), operator={"enum": ["All", "Any"]}, targetReplicatedJobs=TEXTS),
  suspend=YES_OR_NO,
  ttlSecondsAfterFinished=NUMBER,
)
JOBSET = node(
  ("apiVersion", "kind", "metadata", "spec"),
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata={"type": "object"},
  spec=SPEC,
)


def written(tmp_path, seeds=1, changes=CHANGES, **resources):
  found = points.points(base(), changes, seeds)
  path = jobset.write(found, tmp_path, RESOURCES | {"topology": "4x4"} | resources, retries=3)
  return list(yaml.safe_load_all(path.read_text()))


def job_of(manifest):
  return manifest["spec"]["replicatedJobs"][0]["template"]


def container_of(manifest):
  (container,) = job_of(manifest)["spec"]["template"]["spec"]["containers"]
  return container


def round_trip(kind, value):
  """What the client keeps of it."""
  return client.ApiClient().sanitize_for_serialization(kind.from_dict(value))


SLICES = [("4x4", 4, 4), ("2x2", 1, 4), ("1x1", 1, 1)]


@pytest.mark.parametrize(("topology", "hosts", "chips"), SLICES)
def test_it_is_a_jobset_of_jobs_of_pods(tmp_path, topology, hosts, chips):
  manifests = written(tmp_path, seeds=2, topology=topology)
  assert len(manifests) == 4
  names = [manifest["metadata"]["name"] for manifest in manifests]
  assert len(set(names)) == 4
  for manifest, name in zip(manifests, names):
    jsonschema.validate(manifest, JOBSET)
    # A pod is called NAME-slice-0-INDEX-xxxxx, and that is a label of DNS.
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(f"{name}-slice-0-999-xxxxx") <= 63
    assert round_trip(client.V1JobTemplateSpec, job_of(manifest)) == job_of(manifest)
    assert round_trip(client.V1ObjectMeta, manifest["metadata"]) == manifest["metadata"]
    job = job_of(manifest)["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    assert container_of(manifest)["resources"]["limits"] == {"google.com/tpu": str(chips)}
    named = {variable["name"] for variable in container_of(manifest).get("env", [])}
    several = {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}
    assert named == (several if hosts > 1 else set())


def test_the_check_sees_what_is_wrong(tmp_path):
  (manifest,) = written(tmp_path, changes=[{}])
  for wrong in ({"failurePolicies": {}}, {"failurePolicy": {"maxRestarts": "3"}}):
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.validate({**manifest, "spec": manifest["spec"] | wrong}, JOBSET)
  text = json.dumps(job_of(manifest)).replace("nodeSelector", "nodeSelektor")
  assert round_trip(client.V1JobTemplateSpec, json.loads(text)) != json.loads(text)


def test_a_run_that_saved_goes_on_and_one_that_failed_only_so_often(tmp_path):
  manifest = written(tmp_path)[0]
  policy, job = manifest["spec"]["failurePolicy"], job_of(manifest)["spec"]
  codes, taken = job["podFailurePolicy"]["rules"]
  assert codes["onExitCodes"]["values"] == [preemption.REQUEUE]
  assert codes["onExitCodes"]["containerName"] == container_of(manifest)["name"]
  assert taken["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
  # Both fail the job for this reason, which no other failure gives; and a pod never restarts alone.
  assert {rule["action"] for rule in (codes, taken)} == {"FailJob"}
  assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert policy["maxRestarts"] == 3
  assert job["backoffLimit"] == 0
  assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_what_a_pod_runs_lies_where_it_is_mounted(tmp_path):
  for manifest, change in zip(written(tmp_path), CHANGES):
    container = container_of(manifest)
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == str(tmp_path)
    (config,) = [word for word in container["command"] if word.startswith("--config=")]
    page, argument = config.removeprefix("--config=").split(":")
    for path in (page, argument):
      assert path.startswith(f"{tmp_path}/")
    with open(page) as here, open(resolved.__file__) as package:
      assert here.read() == package.read()
    assert resolved.get_config(argument).steps == change["steps"]


def test_finished_runs_are_left_out(tmp_path):
  found = points.points(base(), CHANGES, 1)
  results = tmp_path / found[0].name / "results"
  results.mkdir(parents=True)
  (results / "summary.json").write_text("{}")
  (left,) = written(tmp_path)
  assert left["metadata"]["annotations"]["larpo-jax/run"] == found[1].name
  assert launch.config_path(tmp_path, found[1]).exists()


@pytest.mark.parametrize(
  ("resources", "words"),
  [
    ({"image": ""}, "image is missing"),
    ({"hosts": "4"}, "hosts is none"),
    ({"topology": "4by4"}, "written as 4x4"),
    ({"topology": "3x3"}, "4 chips each"),
    ({"chips": "0"}, "chips=0"),
  ],
)
def test_mistakes_are_named(tmp_path, resources, words):
  with pytest.raises(ValueError, match=words):
    written(tmp_path, **resources)


def test_a_mesh_fits_its_slice(tmp_path):
  with pytest.raises(ValueError, match="mesh of 3 devices does not fit 16 chips"):
    written(tmp_path, changes=[{"mesh.fsdp": 3}])
