"""A Slurm of one node with its own munge, for a test; everything of it lies in one folder."""

import os
import shutil
import socket
import subprocess
import time

from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/linear
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no Slurm here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: apt install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "needs root, as slurmd does"


class Cluster:
    """Runs from __enter__ to __exit__."""

    def __init__(self, folder):
        self.folder = folder
        # sbatch keeps only an absolute path of its configuration for the job.
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons = []

    def __enter__(self):
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        settings = {
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "controller_port": free_port(),
            "node_port": free_port(),
        }
        (self.folder / "slurm.conf").write_text(CONF.format(**settings))
        munge = {"key-file": key, "socket": self.folder / "munge.socket"}
        munge |= {name: self.folder / f"munge.{name}" for name in ("pid-file", "log-file")}
        munge["seed-file"] = self.folder / "munge.seed"
        options = [f"--{name}={value}" for name, value in munge.items()]
        self._start("munged", "--foreground", "--force", *options)
        self._start("slurmctld", "-D", "-i")
        self._start("slurmd", "-D")
        deadline = time.monotonic() + 60
        while "idle" not in self.command("sinfo", "-h", "-o", "%T", check=False):
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.command("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        self.command("scancel", "--user=root", check=False)
        time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, *command):
        log = (self.folder / f"{command[0]}.out").open("w")
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        )

    def command(self, *command, check=True):
        """Standard output of a Slurm command."""
        done = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def job(self, number):
        """A job's fields."""
        text = self.command("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)
