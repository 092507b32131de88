"""Machines on a network of their own, for a test: namespaces of network, processes and names."""

import os
import shutil
import signal
import subprocess
import sys

from tests.commands import ENVIRONMENT, ROOT

SUBNET = "10.213.77"  # nobody else's: it ends at a switch that leads nowhere
PORT = 29400


def missing():
    """Why there can be no such network here, or None."""
    if absent := [name for name in ("ip", "unshare") if shutil.which(name) is None]:
        return f"needs {', '.join(absent)} (Debian: apt install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    probe = f"kf{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Network:
    """Machines 0, 1, ... behind one switch, from __enter__ to __exit__.

    Each has an address and a host name of its own, and sees its own processes alone. A connection
    on which nothing comes through is given up after 2 minutes, where Linux takes 15.
    """

    def __init__(self, folder, count):
        self._folder, self._count = folder, count
        self._name = f"kf{os.getpid()}"
        self._started = {}  # machine: its last program

    def __enter__(self):
        switch = f"{self._name}s"
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for machine in range(self._count):
            own = self._space(machine)
            ip("netns", "add", own)
            ip("-n", switch, "link", "add", f"port{machine}", "type", "veth",
               "peer", "name", "eth0", "netns", own)  # fmt: skip
            ip("-n", switch, "link", "set", f"port{machine}", "master", "switch", "up")
            ip("-n", own, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", own, "link", "set", device, "up")
            ip("netns", "exec", own, "sh", "-c", "echo 8 > /proc/sys/net/ipv4/tcp_retries2")
        return self

    def __exit__(self, *_):
        for machine in range(self._count):
            self.signal(machine, signal.SIGKILL)
        for process in self._started.values():
            process.wait()
        for name in (f"{self._name}s", *map(self._space, range(self._count))):
            subprocess.run(["ip", "netns", "del", name], check=False)

    def _space(self, machine):
        return f"{self._name}n{machine}"

    def address(self, machine):
        return f"{SUBNET}.{machine + 1}"

    def _hosts(self):
        """The names of all machines, for each to know."""
        path = self._folder / "hosts"
        lines = [f"{self.address(machine)} machine{machine}" for machine in range(self._count)]
        path.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        return path

    def processes(self, machine):
        """All of a machine's, by the numbers that they have outside."""
        return [int(pid) for pid in ip("netns", "pids", self._space(machine)).split()]

    def signal(self, machine, number):
        """To every process of a machine at once; its kernel goes on, and tells their peers."""
        for pid in self.processes(machine):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def agent(self, machine):
        """The number of a machine's torchrun; None where none runs."""
        return next(iter(self._running(machine, lambda words: words[1:3] == AGENT)), None)

    def ranks(self, machine):
        """The numbers of a machine's ranks."""
        return self._running(machine, lambda words: words[2:3] == ["launch/train.py"])

    def _running(self, machine, wanted):
        return [pid for pid in self.processes(machine) if wanted(_command(pid))]

    def cut(self, machine, *, mended=False):
        """Pull a machine's cable out of the switch: nothing comes through, and nobody is told."""
        state = "up" if mended else "down"
        ip("-n", f"{self._name}s", "link", "set", f"port{machine}", state)

    def torchrun(self, machine, *arguments, store_on=0, **environment):
        """Start it on a machine; .log_path of the process has all it says."""
        log_path = self._folder / f"machine{machine}.log"
        options = [f"--local-addr={self.address(machine)}", "--rdzv_backend=c10d"]
        options += [f"--rdzv_endpoint={self.address(store_on)}:{PORT}", "--nproc_per_node=1"]
        inside = (
            f'hostname machine{machine} && mount --bind {self._hosts()} /etc/hosts && exec "$@"'
        )
        with log_path.open("a") as log:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._space(machine)),
                    *("unshare", "--uts", "--pid", "--fork", "--mount-proc"),
                    *("sh", "-c", inside, "sh", sys.executable, *AGENT, *options),
                    *map(str, arguments),
                ],
                cwd=ROOT,
                env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "eth0", **environment},
                stdout=log,
                stderr=log,
            )
        process.log_path = log_path
        self._started[machine] = process
        return process


AGENT = ["-m", "torch.distributed.run"]


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            return file.read().split("\0")
    except OSError:
        return []
