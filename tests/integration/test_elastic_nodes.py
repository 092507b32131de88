"""Nodes that die, vanish, freeze, leave and join while a run goes on (torchrun --nnodes=2:3).

ELASTIC_NODES=1 pytest -s tests/integration/test_elastic_nodes.py   runs all, with the waiting times
of a real job, and prints seconds and steps lost; otherwise the first alone runs, with short ones.
NODE_KILLS=50 pytest -s tests/integration/test_elastic_nodes.py -k bitwise   kills so many times.
"""

import itertools
import json
import os
import random
import re
import signal
import time

import pytest

from kappaface_dist.training.metrics_file import read_metrics
from tests.integration.faults import assert_same_end, last_step
from tests.integration.network import Network, missing
from tests.integration.test_training import fit
from tests.processes import run_on_ranks

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.timeout(900),
]
KILLS = int(os.environ.get("NODE_KILLS", "0"))
ALL = bool(os.environ.get("ELASTIC_NODES"))
only_all = pytest.mark.skipif(not ALL, reason="ELASTIC_NODES=1 runs it (make test-nodes)")
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# Of torchrun: after the fewest nodes have come, it waits so long for more; and so often looks.
SHORT = "--rdzv_conf=last_call_timeout=4,keep_alive_interval=1,keep_alive_max_attempt=3"


class Run:
    """One run on the machines of a network."""

    def __init__(self, network, path, nodes, environment):
        self.network, self.path, self.folder = network, path, path.parent / "run"
        self.options = [f"--nnodes={nodes}", "--max-restarts=100", *([] if ALL else [SHORT])]
        self.environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10", **environment}
        self.agents = {}

    def start(self, *machines, store_on=0):
        for machine in machines:
            self.agents[machine] = self.network.torchrun(
                machine,
                *self.options,
                "launch/train.py",
                self.path,
                store_on=store_on,
                **self.environment,
            )

    def log(self):
        path = self.folder / "train.log"
        return path.read_text() if path.is_file() else ""

    def starts(self):
        """(step from which it went on, ranks) of each start but the first."""
        found = re.findall(r"going on from \S*step_(\d+) with (\d+) processes", self.log())
        return [(int(step), int(ranks)) for step, ranks in found]

    def said(self, machine):
        return self.agents[machine].log_path.read_text()

    def wait(self, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                texts = [f"{m}: {self.said(m)[-3000:]}" for m in self.agents]
                pytest.fail("\n".join([self.log()[-1000:], *texts]))
            time.sleep(0.05)
        return value

    def reach(self, step):
        self.wait(lambda: last_step(self.folder) >= step)

    def after(self, what, event, ranks, seconds=300):
        """event(), then wait until so many ranks train again; the steps that are done again."""
        starts, before, began = len(self.starts()), last_step(self.folder), time.monotonic()
        event()
        self.wait(lambda: self.starts()[starts:] and self.starts()[-1][1] == ranks, seconds)
        again = self.starts()[-1][0]
        self.wait(self.trains, seconds)
        lost = max(before - again, 0)
        print(f"{what}: {time.monotonic() - began:.0f} s, {lost} steps done again")
        return lost

    def trains(self):
        """Whether steps are done since the last start."""
        log = self.log()
        return re.search(r"INFO step \d+ ", log[log.rindex("going on from") :])

    def stop(self, *machines):
        """Ask all nodes to stop; the step to which each was done once."""
        for machine in machines:
            os.kill(self.network.agent(machine), signal.SIGTERM)
        for machine in machines:
            self.agents[machine].wait(timeout=60)
        lines = read_metrics(self.folder / "metrics.jsonl")
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == list(range(1, steps[-1] + 1))
        assert json.loads((self.folder / "stopped.json").read_text())["step"] == steps[-1]


@pytest.fixture
def run(write_config, tmp_path, request):
    """A run that goes on for ever; machines 0 to 2 are there."""
    minutes, nodes, environment = getattr(request, "param", (5.0, "2:3", OWN_STORE))
    path = write_config(
        run={"steps": 10**6, "timeout_minutes": minutes},
        checkpoint={"every": 20},
        backbone={"name": "tiny_gn"},
    )
    with Network(tmp_path, 3) as network:
        yield Run(network, path, nodes, environment)


@pytest.mark.parametrize("run", [(5.0, "2:3" if ALL else "1:2", OWN_STORE)], indirect=True)
def test_a_node_joins_and_one_is_killed(run):
    """The newcomer costs no step, the dead one those since the last checkpoint."""
    first = (0, 1) if ALL else (0,)
    new = len(first)
    run.start(*first)
    run.reach(5)
    assert run.after("one joins", lambda: run.start(new), ranks=new + 1) == 0
    run.reach(last_step(run.folder) + 30)
    lost = run.after("one killed", lambda: run.network.signal(new, signal.SIGKILL), ranks=new)
    assert lost <= 20 + 20 + 10  # checkpoints, one under way, and what it did until it was seen
    run.stop(*first)


@only_all
@pytest.mark.parametrize("run", [(5.0, "2:3", {})], indirect=True)
def test_a_node_is_killed_where_the_agents_keep_the_store(run):
    run.start(0, 1, 2)
    run.reach(50)
    run.after("one killed (agents' store)", lambda: run.network.signal(2, signal.SIGKILL), ranks=2)
    run.stop(0, 1)


@only_all
@pytest.mark.parametrize("run", [(5.0, "1:3", OWN_STORE)], indirect=True)
def test_two_nodes_are_lost_in_a_row(run):
    run.start(0, 1, 2)
    run.reach(50)
    run.after("first of two killed", lambda: run.network.signal(2, signal.SIGKILL), ranks=2)
    run.reach(last_step(run.folder) + 30)
    run.after("second of two killed", lambda: run.network.signal(1, signal.SIGKILL), ranks=1)
    run.stop(0)


@only_all
@pytest.mark.parametrize("run", [(0.5, "2:3", OWN_STORE)], indirect=True)
def test_a_node_is_cut_off_and_comes_back(run):
    """Its own ranks and torchrun end; the others go on, and it joins them when it is started."""
    run.start(0, 1, 2)
    run.reach(50)
    run.after("one cut off", lambda: run.network.cut(2), ranks=2)
    said = run.said(0) + run.said(1)
    assert "rank 2 shows no sign of life since step" in said
    run.wait(lambda: "no progress for 0.5 minutes" in run.said(2))
    run.network.signal(2, signal.SIGKILL)
    run.network.cut(2, mended=True)
    assert run.after("it comes back", lambda: run.start(2), ranks=3) == 0
    run.stop(0, 1, 2)


@only_all
@pytest.mark.parametrize("run", [(0.5, "2:3", OWN_STORE)], indirect=True)
def test_a_node_is_stopped(run):
    run.start(0, 1, 2)
    run.reach(50)
    run.after("one stopped", lambda: run.network.signal(2, signal.SIGSTOP), ranks=2)
    assert "rank 2 shows no sign of life since step" in run.said(0) + run.said(1)
    # It wakes up, finds that its time is over, and joins the others as a newcomer, or ends.
    starts = len(run.starts())
    run.network.signal(2, signal.SIGCONT)
    run.wait(lambda: run.starts()[starts:] or run.agents[2].poll() is not None)
    run.wait(run.trains)
    print("the one that was stopped", "ended" if run.agents[2].poll() else "joined again")
    run.stop(*[machine for machine in range(3) if run.agents[machine].poll() is None])


@only_all
@pytest.mark.parametrize("event", ["killed", "cut off"])
@pytest.mark.parametrize("run", [(0.5, "2:3", OWN_STORE)], indirect=True)
def test_node_0_is_lost_and_the_job_is_started_again(run, event):
    """torchrun cannot go on without the machine that keeps its store: it ends, and says so."""
    run.start(0, 1, 2)
    run.reach(50)
    began = time.monotonic()
    if event == "killed":
        run.network.signal(0, signal.SIGKILL)
    else:
        run.network.cut(0)
    for machine in (1, 2):
        run.wait(lambda machine=machine: run.agents[machine].poll() is not None, 600)
        assert run.agents[machine].returncode != 0
    print(f"node 0 {event}: the others' torchrun ended after {time.monotonic() - began:.0f} s")
    run.network.signal(0, signal.SIGKILL)
    run.after("started again without it", lambda: run.start(1, 2, store_on=1), ranks=2)
    run.stop(1, 2)


@only_all
def test_a_node_that_is_told_to_leave_leaves_alone(run):
    """The others stop with it, at the same step, and go on: no torchrun takes that for the end."""
    run.start(0, 1, 2)
    run.reach(50)
    leave = run.network.agent(2)
    assert run.after("one told to leave", lambda: os.kill(leave, signal.SIGTERM), ranks=2) == 0
    assert [run.agents[machine].poll() for machine in (0, 1)] == [None, None]
    run.stop(0, 1)


@pytest.mark.skipif(not KILLS, reason="NODE_KILLS=50 runs it (make test-nodes)")
@pytest.mark.timeout(3000)
def test_a_run_killed_on_one_and_both_nodes_ends_bitwise_as_if_nothing_had_happened(
    write_config, tmp_path
):
    """Ranks and torchruns, of one node and of both, every second time in the middle of a save."""
    steps = 100 + 25 * KILLS
    path = write_config(run={"steps": steps}, checkpoint={"every": 10}, head={"sample_rate": 0.5})
    run_on_ranks(2, fit, path, f"run.folder={tmp_path}/whole")
    chance, counts = random.Random(7), dict.fromkeys(EVENTS, 0)
    with Network(tmp_path, 2) as network:
        run = Run(network, path, "2", OWN_STORE)
        run.options = ["--nnodes=2", "--max-restarts=100", SHORT]
        run.start(0, 1)
        run.reach(20)  # there is a checkpoint
        for number in range(KILLS):
            run.reach(last_step(run.folder) + 4)
            run.wait(lambda: network.ranks(0) and network.ranks(1))
            if number % 2 == 0:
                run.wait(lambda: list(run.folder.glob("checkpoints/*.part")))
            else:
                time.sleep(chance.random())
            what, where = event = EVENTS[number % len(EVENTS)]
            victims = (0, 1) if where == "both" else (chance.randrange(2),)
            own = {m: network.ranks(m) if what == "rank" else [network.agent(m)] for m in victims}
            starts = len(run.starts())
            for pid in itertools.chain(*own.values()):
                os.kill(pid, signal.SIGKILL)
            counts[event] += 1
            if what == "torchrun":
                # Without the machine of the store the other one's torchrun ends as well.
                ended = (0, 1) if 0 in victims else victims
                for machine in ended:
                    run.agents[machine].wait(timeout=120)
                run.start(*ended)
            run.wait(lambda old=starts: len(run.starts()) > old)
        for agent in run.agents.values():
            assert agent.wait(timeout=600) == 0
    assert_same_end(run.folder, tmp_path / "whole")
    print(f"{KILLS} kills, one run of {steps} steps, bitwise equal: {counts}")


EVENTS = [(what, where) for what in ("rank", "torchrun") for where in ("one", "both")]
