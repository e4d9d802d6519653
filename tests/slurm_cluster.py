"""A Slurm of one node in a folder, for tests: no root, systemd, munge, cgroups or accounting, two partitions.

``low`` is the default; jobs of ``high`` preempt its jobs, which are requeued. By hand, until Ctrl-C:

    python tests/slurm_cluster.py FOLDER        then, in another shell: export SLURM_CONF=FOLDER/slurm.conf
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
PATIENCE = 20.0  # seconds for a start or a stop
GRACE = 10  # seconds from the signal that warns of a preemption to SIGTERM, and from that to SIGKILL

CONFIG = """\
ClusterName=modexp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
# a requeued job waits 120 s without this
AuthInfo=cred_expire=5
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preemption}
SchedulerParameters=sched_interval=1,defer
ReturnToService=2
KillWait={grace}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={warning} PreemptMode=REQUEUE
PartitionName=high Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian puts the daemons
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"Slurm is not installed (no {', '.join(lacking)}): apt install slurm-wlm" if lacking else ""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def wait_until(done: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(0.1)


@contextmanager
def cluster(folder: Path, cpus: int = 1, user_signal: bool = True) -> Iterator[Path]:
    """Start it, give its slurm.conf, cancel what runs and stop it. SLURM_CONF names it meanwhile; log/ tells its story.

    ``user_signal``: a preempted job is sent the signal it asked for, as clusters may choose; else SIGTERM at once.
    """
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    control_port, node_port = free_ports(2)
    preemption = "SlurmctldParameters=preempt_send_user_signal" if user_signal else ""
    host, config = socket.gethostname().partition(".")[0], folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=host, control_port=control_port, node_port=node_port, user=getpass.getuser(), folder=folder,
            cpus=cpus, preemption=preemption, warning=GRACE if user_signal else 0, grace=GRACE,
        )
    )  # fmt: skip
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemons = [subprocess.Popen(["slurmctld", "-D", "-c"], **quiet)]  # type: ignore[call-overload]
    try:
        wait_until(lambda: "is UP" in ask("scontrol", "ping"))
        daemons.append(subprocess.Popen(["slurmd", "-D", "-N", host], **quiet))  # type: ignore[call-overload]
        wait_until(lambda: "idle" in ask("sinfo", "-h", "-o", "%T"))
        yield config
    finally:
        with suppress(TimeoutError):
            for job in ask("squeue", "-h", "-o", "%F").split():
                ask("scancel", job)
            wait_until(lambda: not ask("squeue", "-h").strip())
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


if __name__ == "__main__":
    if problem := missing():
        sys.exit(problem)
    with cluster(Path(sys.argv[1]).resolve()) as config:
        print(f"export SLURM_CONF={config}", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
