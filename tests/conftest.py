"""What every test stands on: eight fake devices, exact matmuls, one seed, and honest skips."""

import importlib
import importlib.metadata
import os
from pathlib import Path
import random
import shutil
import zlib

# Before jax is imported by anything: it reads both once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = {
  "--xla_force_host_platform_device_count": 8,
  # Tests compile much and compute little: these two take three quarters off a compilation.
  "--xla_backend_optimization_level": 0,
  # Eight devices are threads of a few cores: where those are busy, one waits long for the others.
  "--xla_cpu_collective_call_terminate_timeout_seconds": 600,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a later one does not know it
  flags["--xla_cpu_use_fusion_emitters"] = "false"
# XLA:CPU has as many threads as devices or cores, and a collective blocks one: with a few more,
# eight fake devices on two cores can not all wait for a thread.
os.environ.setdefault("NPROC", "32")
given = os.environ.get("XLA_FLAGS", "")
added = [f"{name}={value}" for name, value in flags.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("LARPO_DATA") or ROOT.parent / "shared" / "data")
BENCH = Path(os.environ.get("LARPO_BENCH") or ROOT.parent / "shared" / "bench")
SEED = int(os.environ.get("LARPO_SEED") or random.SystemRandom().randrange(2**31))
os.environ["LARPO_SEED"] = str(SEED)  # the same in every worker
# Set where everything is installed: what is missing then fails instead of skipping.
REQUIRE_ALL = os.environ.get("LARPO_REQUIRE_ALL") == "1"
PEERS = "no peer"
NO_DATA = "no data"
NO_BENCH = "no benchmark"
NO_BROWSER = "no browser"
REMEDIES = {
  PEERS: "PyTorch or TRL is not installed: pip install -c constraints.txt -e '.[test,parity]'",
  NO_DATA: f"no data in {DATA}: put it there, or set LARPO_DATA to where it is",
  NO_BENCH: f"no benchmark in {BENCH}: put it there, or set LARPO_BENCH to where it is",
  NO_BROWSER: "Chromium or selenium is not installed: apt-get install chromium chromium-driver, "
  "pip install -c constraints.txt -e '.[test,dev]'",
}

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def seed(request):
  """Fresh in every run and different in every test; LARPO_SEED of the header repeats it."""
  return _seed_of(request.node.nodeid)


@pytest.fixture(scope="module")
def module_seed(request):
  """The same for what the tests of a module share."""
  return _seed_of(request.node.nodeid)


def _seed_of(nodeid):
  return zlib.crc32(f"{SEED} {nodeid}".encode()) >> 1


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """A session with rounds, and its first parameters; for the tests of a module."""
  import tiny_rounds

  return tiny_rounds.start(tmp_path_factory.mktemp("session"))


@pytest.fixture
def run(started, tmp_path):
  """The session in a workdir of its own, with settings of the rounds; and the parameters."""
  import tiny_rounds

  return lambda **settings: (tiny_rounds.placed(started[0], tmp_path, **settings), started[1])


@pytest.fixture
def learnt(monkeypatch):
  """What each stage of a run was given to learn from; learning moves the parameters a little."""
  from larpo_jax import stage, train_step

  calls = []

  def learn(session, name, params, data, **settings):
    calls.append(dict(name=name, params=params, data=data, settings=settings))
    moved = jax.tree.map(lambda x: 0.9 * x, params)
    return train_step.TrainState(moved, opt_state=f"moments of {name}", step=0, skipped=0)

  monkeypatch.setattr(stage, "train", learn)
  return calls


@pytest.fixture(scope="module", autouse=True)
def _compiled_per_module():
  """Compiled programs hold memory maps, of which a process may have 65,530: 3,000 tests' worth."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data():
  """The directory of real data sets."""
  if not DATA.is_dir():
    _missing(NO_DATA, str(DATA))
  return DATA


@pytest.fixture(scope="session")
def shared_bench():
  """The directory of the common work that benchmarks are run on."""
  if not (BENCH / "specs").is_dir():
    _missing(NO_BENCH, str(BENCH))
  return BENCH


@pytest.fixture(scope="session")
def torch_peer():
  """PyTorch, the second implementation that models are compared with."""
  return _peer("torch")


@pytest.fixture(scope="session")
def trl_peer(torch_peer):
  """TRL, the second implementation that losses are compared with."""
  return _peer("trl")


@pytest.fixture(scope="session")
def browser():
  """A headless Chromium that notes requests and errors; it reaches no network."""
  chromium, driver, selenium = browser_parts()
  options = selenium.ChromeOptions()
  options.binary_location = chromium
  for each in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
    options.add_argument(f"--{each}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
  service = importlib.import_module("selenium.webdriver.chrome.service").Service(driver)
  opened = selenium.Chrome(options=options, service=service)
  yield opened
  opened.quit()


def browser_parts():
  """The paths of Chromium and of its driver, and the module that talks to them."""
  paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
  if None in paths:
    _missing(NO_BROWSER, "chromium and chromedriver are not both on the PATH")
  try:
    return *paths, importlib.import_module("selenium.webdriver")
  except ImportError as error:
    _missing(NO_BROWSER, str(error))


def _peer(name):
  try:
    return importlib.import_module(name)
  except ImportError as error:
    _missing(PEERS, str(error))


def _missing(kind, detail):
  act = pytest.fail if REQUIRE_ALL else pytest.skip
  act(f"{kind}: {detail}")


def pytest_report_header():
  """The seed first, so that a failure can be repeated."""
  return f"seed: {SEED} (repeat with LARPO_SEED={SEED}); {jax.device_count()} devices"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
  """A failure shows its seed; a skip for a missing import fails where nothing may be missing."""
  report = yield
  if report.failed and {"seed", "module_seed"} & set(getattr(item, "fixturenames", ())):
    report.sections.append(("seed", f"LARPO_SEED={SEED} python -m pytest '{item.nodeid}'"))
  if REQUIRE_ALL and report.skipped and "could not import" in _reason(report):
    report.outcome, report.longrepr = "failed", f"LARPO_REQUIRE_ALL=1: {_reason(report)}"
  return report


def pytest_terminal_summary(terminalreporter):
  """Says how many tests had nothing to compare with, and how to get it."""
  reasons = [_reason(report) for report in terminalreporter.stats.get("skipped", [])]
  for kind, remedy in REMEDIES.items():
    count = sum(kind in reason for reason in reasons)
    if count:
      terminalreporter.write_line(f"{count} tests skipped: {remedy}", yellow=True)


def _reason(report):
  text = report.longrepr
  return text[-1] if isinstance(text, tuple) else str(text)
