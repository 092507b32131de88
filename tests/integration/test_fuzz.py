"""Faults at random, counted: nothing crashes, hangs, or changes in silence.

make fuzz runs the long form: FUZZ=10000 FUZZ_SEED=1 pytest -s tests/integration/test_fuzz.py
"""

import io
import json
import os
import tarfile

import pytest
import torch

from kappaface_dist.config.file import load_config, to_dict
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.class_names import read_class_names
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.metadata import learnt_facts
from kappaface_dist.models.published import read_published
from kappaface_dist.models.saved_model import backbone_settings, open_model
from kappaface_dist.models.summary_file import SUMMARY_KEYS, read_summary
from kappaface_dist.training.metrics_file import read_metrics
from tests import fuzzing
from tests.integration.faults import assert_same_end, last_step
from tests.integration.test_mutated_data import expected_of
from tests.integration.test_training import fit
from tests.processes import run_on_ranks
from tests.unit.data.made_records import jpeg, write_records

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

NUM = int(os.environ.get("FUZZ", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # of tags that were damaged
]


@pytest.fixture
def targets(write_config, tmp_path):
    """name: (weight, target); the files of a small run, its data, and all that is read of them."""
    path = write_config(run={"steps": 2})
    run_on_ranks(2, fit, path)
    config = load_config(path)
    checkpoint = config.folder / "checkpoints" / "step_00000002"
    settings = config.folder / "config.yaml"
    settings.write_bytes(path.read_bytes())
    export = tmp_path / "export" / "backbone.safetensors"
    facts = learnt_facts(images=3, identities=2, verification={})
    network = open_model(checkpoint).network
    save_backbone(export, network, **vars(backbone_settings(config)), facts=facts)
    record = write_records(tmp_path / "few.rec", [i // 3 for i in range(12)], size=16)
    starts = _starts(record)
    lines = "".join(f"{key}\t{at}\n" for key, at in enumerate(starts))
    record.with_suffix(".idx").write_text(lines)
    metrics = config.folder / "metrics.jsonl"
    found = {
        "configuration values": (22, fuzzing.of_config(tmp_path)),
        "pictures": (22, fuzzing.of_pictures()),
        "pickles": (20, fuzzing.of_pickles(tmp_path)),
        "record and its indexes": (14, fuzzing.of_record(record)),
        "exported backbone": (4, fuzzing.of_bits(export, lambda: open_model(export).digest)),
        "metrics.jsonl": (2, fuzzing.of_file(metrics, lambda: read_metrics(metrics))),
        "config.yaml": (2, fuzzing.of_file(settings, lambda: to_dict(load_config(settings)))),
    }
    for name, read in _other_files(tmp_path).items():
        found[name] = (2, fuzzing.of_file(tmp_path / name, read))
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        # Nobody but its own rank and a start read the other rank's shard.
        target = fuzzing.of_bits(file, lambda: open_model(checkpoint).digest)
        found[f"checkpoint: {file.name}"] = (12 / 5, target)
    return found


def _other_files(folder):
    """A file of each other kind that is read, and what reads it."""
    summary = dict.fromkeys(SUMMARY_KEYS, 1)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    (folder / "a.names").write_text("ann\nBob\nzoë\n")
    torch.save({"bn.weight": torch.arange(64.0)}, folder / "published.pth")
    with tarfile.open(folder / "few.tar", "w") as archive:
        for number in range(6):
            for end, content in (("jpg", jpeg(number, 16)), ("cls", str(number // 2).encode())):
                info = tarfile.TarInfo(f"{number}.{end}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    columns = {"image": [jpeg(n, 16) for n in range(6)], "label": [n // 2 for n in range(6)]}
    pq.write_table(pa.table(columns), folder / "few.parquet")

    def images(name):
        return lambda: expected_of(open_catalog(folder / name))

    def published():
        return read_published(folder / "published.pth")["bn.weight"].numpy()

    return {
        "summary.json": lambda: read_summary(folder / "summary.json"),
        "a.names": lambda: read_class_names(folder / "a.rec"),
        "published.pth": published,
        "few.tar": images("few.tar"),
        "few.parquet": images("few.parquet"),
    }


def _starts(record):
    """Where each record of write_records begins."""
    places, at, whole = [], 0, record.read_bytes()
    while at < len(whole):
        places.append(at)
        length = int.from_bytes(whole[at + 4 : at + 8], "little") & (1 << 29) - 1
        at += 8 + length + -length % 4
    assert len(places) == 12
    assert jpeg(0, 16) in whole
    return places


def test_no_fault_at_random_is_a_crash_a_hang_or_a_silent_change(targets):
    print(f"\nseed {SEED}, {NUM} injections")
    counts = fuzzing.campaign(targets, NUM, SEED)
    print("| | injected | survived | refused | said | accepted |\n|---|---|---|---|---|---|")
    for name, row in [*counts.items(), ("all", _sum(counts))]:
        print(f"| {name} | {sum(row.values())} | {' | '.join(map(str, row.values()))} |")
    total = _sum(counts)
    assert sum(total.values()) == NUM
    assert total["refused"] > 0.2 * NUM
    assert total["survived"] > 0


def _sum(counts):
    return {answer: sum(row[answer] for row in counts.values()) for answer in fuzzing.ANSWERS}


def test_a_process_killed_at_random_leaves_what_the_next_goes_on_from(write_config, tmp_path):
    """The end is bitwise that of a run that nobody killed."""
    kills = max(NUM // 200, 1)
    steps = 20 + 30 * kills
    path = write_config(run={"steps": steps}, checkpoint={"every": 4})
    target = fuzzing.of_kills(path, fit, [f"run.folder={tmp_path}/killed"])
    counts = fuzzing.campaign({"kills": (1, target)}, kills, SEED)
    assert last_step(tmp_path / "killed") < steps, "it came to its end before the last kill"
    for folder in ("killed", "whole"):
        run_on_ranks(1, fit, path, f"run.folder={tmp_path}/{folder}")
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    print(f"\nseed {SEED}: {counts['kills']['survived']} kills in {steps} steps, bitwise equal")
