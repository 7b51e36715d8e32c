"""A Slurm of one node on this machine, its daemons and all that they write in one directory.

Debian's packages are enough: slurmctld, slurmd, slurm-client and munge. Nothing of the system's own
Slurm is read or written, and it needs no root.
"""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time

DAEMONS = ("munged", "slurmctld", "slurmd")
CPUS = 4  # more than the machine may have: two small jobs run at a time anywhere


@contextlib.contextmanager
def slurm(directory):
  """The environment in which sbatch, squeue and the like speak to it, while the block runs."""
  missing = [name for name in DAEMONS if _found(name) is None]
  if missing:
    raise FileNotFoundError(f"{missing[0]} is missing: install slurmctld, slurmd, slurm-client")
  directory = pathlib.Path(directory)
  environment = {**os.environ, "SLURM_CONF": str(_configured(directory))}
  commands = [
    _munged(directory),
    [_found("slurmctld"), "-D", "-c"],
    [_found("slurmd"), "-D", "-N", _name()],
  ]
  running = []
  try:
    for command in commands:
      with (directory / f"{pathlib.Path(command[0]).name}.out").open("wb") as output:
        running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
      until((directory / "munge.socket").exists, "munged", directory)
    until(lambda: _idle(environment), "the node", directory)
    yield environment
  finally:
    for process in reversed(running):  # munged last: the others speak through it
      process.terminate()
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
      process.kill()


def _found(name):
  return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _name():
  return socket.gethostname().split(".")[0]


def _configured(directory):
  """Writes slurm.conf; ports of its own, so that another Slurm may be here."""
  for name in ("state", "spool"):
    (directory / name).mkdir()
  controller, daemon = _free_ports(2)
  settings = f"""
    ClusterName=test
    SlurmctldHost={_name()}(127.0.0.1)
    SlurmctldPort={controller}
    SlurmdPort={daemon}
    SlurmUser={getpass.getuser()}
    SlurmdUser={getpass.getuser()}
    AuthType=auth/munge
    AuthInfo=socket={directory}/munge.socket,cred_expire=5
    CredType=cred/munge
    StateSaveLocation={directory}/state
    SlurmdSpoolDir={directory}/spool
    SlurmctldPidFile={directory}/slurmctld.pid
    SlurmdPidFile={directory}/slurmd.pid
    SlurmctldLogFile={directory}/slurmctld.log
    SlurmdLogFile={directory}/slurmd.log
    ProctrackType=proctrack/linuxproc
    TaskPlugin=task/none
    SwitchType=switch/none
    MpiDefault=none
    JobAcctGatherType=jobacct_gather/none
    AccountingStorageType=accounting_storage/none
    SelectType=select/cons_tres
    SelectTypeParameters=CR_CPU
    SlurmdParameters=config_overrides
    SchedulerParameters=sched_interval=1,batch_sched_delay=0
    ReturnToService=2
    KillWait=30
    NodeName={_name()} NodeAddr=127.0.0.1 CPUs={CPUS} State=UNKNOWN
    PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
  """
  path = directory / "slurm.conf"
  path.write_text("\n".join(line.strip() for line in settings.strip().splitlines()) + "\n")
  (directory / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
  return path


def _munged(directory):
  key = directory / "munge.key"
  key.touch(mode=0o600)
  key.write_bytes(secrets.token_bytes(1024))
  files = {"key": key, "log": directory / "munge.log", "pid": directory / "munge.pid"}
  files["seed"] = directory / "munge.seed"
  named = [f"--{name}-file={path}" for name, path in files.items()]
  # --force: the directories above a temporary one are not munge's own.
  return [_found("munged"), "--foreground", "--force", f"--socket={directory}/munge.socket", *named]


def _free_ports(count):
  with contextlib.ExitStack() as held:
    listeners = [held.enter_context(socket.socket()) for _ in range(count)]
    for listener in listeners:
      listener.bind(("127.0.0.1", 0))
    return [listener.getsockname()[1] for listener in listeners]


def _idle(environment):
  asked = ["sinfo", "--noheader", "--format=%T"]
  said = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
  return said.stdout.strip() == "idle"


def until(true, what, directory, seconds=60):
  """Waits until it is; what the daemons said where it never is."""
  deadline = time.monotonic() + seconds
  while not true():
    if time.monotonic() > deadline:
      logs = [path.read_text(errors="replace")[-2000:] for path in directory.glob("*.out")]
      raise TimeoutError(f"{what} does not come up: " + "\n".join(logs))
    time.sleep(0.1)
