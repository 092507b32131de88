"""The plan of a job against one rank of it, really run among pretended neighbours."""

import json

import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.head import build_margin
from kappaface_dist.planning.calibration import calibrated
from kappaface_dist.planning.collectives import bucket_sizes
from kappaface_dist.planning.job_size import JobSize, size_given
from kappaface_dist.planning.memory import memory_items
from kappaface_dist.planning.plan import make_plan, planned_calls, remedies
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.rehearsal import rehearse
from kappaface_dist.planning.step_time import DEVICES, head_seconds

CPU = torch.device("cpu")
SMALL = [
    "data.train=none",
    "data.batch_size=4",
    "data.image_size=32",
    "backbone.name=tiny",
    "backbone.embedding_size=16",
    "run.epochs=1",
]
# Classes of a rank beyond which the job is scaled down, to keep the tests small.
MOST_ROWS = 5_000


@pytest.fixture
def load(tmp_path):
    def _load(*overrides):
        (tmp_path / "config.yaml").write_text("{}\n")
        return load_config(tmp_path / "config.yaml", [*SMALL, *overrides])

    return _load


def compare(config, num_ranks, *num_classes, rank=0):
    """Every planned item and collective is what the rank takes."""
    size = size_given(config, num_classes, None, num_ranks)
    with pretend_ranks(num_ranks, rank):
        measured = rehearse(config, size, CPU)
        memory, calls = memory_items(config, size), planned_calls(config, num_ranks)
    assert memory.keys() == measured["memory_bytes"].keys()
    for item, num_bytes in measured["memory_bytes"].items():
        assert memory[item] == pytest.approx(num_bytes, rel=0.1, abs=2000), item
    planned = [(call.name, call.num_bytes) for call in calls]
    assert [(call.name, call.num_bytes) for call in measured["collectives"]] == planned
    return memory, calls


@pytest.mark.parametrize("num_classes", [360_000, 2_000_000, 10_000_000, 100_000_000])
@pytest.mark.parametrize("num_ranks", [1, 8, 64, 512])
def test_every_item_is_as_planned(load, num_ranks, num_classes):
    num_classes = min(num_classes, MOST_ROWS * num_ranks)
    memory, calls = compare(load(), num_ranks, num_classes)
    # Centres and momentum of D = 16 in fp32: by hand.
    assert memory["centres"] == -(-num_classes // num_ranks) * 16 * 4
    assert memory["centre_optimizer"] == memory["centres"]
    # Sum of D = 16, weight, squared weight, kappa, margin and count, four bytes each.
    assert memory["class_statistics"] == -(-num_classes // num_ranks) * (16 + 5) * 4
    assert len(calls) == (0 if num_ranks == 1 else 4)


@pytest.mark.parametrize(
    "overrides",
    [
        ["head.sample_rate=0.2", "optimizer.name=adamw", "backbone.embedding_size=256"],
        ["precision=bf16", "head.logit_cache_bytes=200000", "data.batch_size=16"],
        ["backbone.checkpointing=true", "backbone.bucket_megabytes=0.3"],
        ["optimizer.accumulate=3", "backbone.gradient_dtype=bf16"],
        ["optimizer.accumulate=2", "margin.source=memory", "backbone.embedding_size=64"],
        ["optimizer.accumulate=2", "margin.source=encoder"],
        ["optimizer.accumulate=2", "optimizer.cache_embeddings=true", "margin.name=arcface"],
        ["head.dtype=bf16", "head.momentum_dtype=bf16", "backbone.channels_last=true"],
        ["head.skip_mass=0.01"],
        ["head.sub_centres=3", "head.logit_cache_bytes=200000", "data.batch_size=16"],
        ["head.sub_centres=2", "head.sample_rate=0.2", "optimizer.name=adamw"],
        ["head.centre_dtype=bf16", "head.momentum_dtype=none", "head.sample_rate=0.2"],
        # Collectives of their own: scalars at a window's end, target cosines and peaks, norms.
        ["margin.refresh_steps=1", "margin.standardise=robust", "optimizer.accumulate=2"],
        ["margin.refresh_steps=1", "margin.source=encoder", "margin.estimator=empirical_bayes"],
        ["margin.refresh_steps=3"],
        ["margin.name=curricularface"],
        ["margin.name=adaface"],
        ["margin.name=magface"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_settings_are_planned(load, overrides):
    compare(load(*overrides), 8, 100_000)


TWO = "data.train={a: {path: x, share: 0.75, margin: {name: %s}}, b: {path: x, share: 0.25%s}}"
CACHED = ["optimizer.accumulate=2", "optimizer.cache_embeddings=true", "precision=bf16"]


@pytest.mark.parametrize(
    ("margin", "other", "overrides", "passes"),
    [
        ("arcface", "", [], 1),
        ("curricularface", ", sample_rate: 0.2, margin: {source: memory}", CACHED[:1], 2),
        ("magface", ", margin: {refresh_steps: 1}", CACHED, 1),
    ],
)
def test_two_datasets_are_planned(load, margin, other, overrides, passes):
    config = load("data.batch_size=8", TWO % (margin, other), *overrides)
    _, calls = compare(config, 8, 30_000, 10_000)
    for item in ("embedding_all_gather", "loss_all_reduce", "embedding_reduce_scatter"):
        assert sum(call.item == item for call in calls) == passes  # however many heads


@pytest.mark.parametrize("source", ["memory", "encoder"])
def test_embeddings_that_are_kept_are_a_remedy(load, source):
    """Images x D x 2 bytes of a memory, shared by the ranks; and what goes with it goes back."""
    size, estimator = JobSize(80_000, 8_000_000, 8), "margin.estimator=released"
    config = load(f"margin.source={source}", estimator, "backbone.embedding_size=64")
    with pretend_ranks(8):
        items = memory_items(config, size)
        advice = dict(remedies(config, size, DEVICES["cpu"]))
    if source == "memory":
        assert items["image_memory"] == 1_000_000 * 64 * 2
        assert advice["margin.source=batch"] < sum(items.values()) - 100e6
    else:
        assert items["momentum_encoder"] == items["backbone_parameters"]
    both = f"margin.statistic=target_cosine margin.source=batch {estimator.split('=')[0]}=unbiased"
    assert advice[both] < sum(items.values())


def test_the_last_rank_may_own_less(load):
    size = JobSize(1001, 40_000, 64)
    with pretend_ranks(64, rank=63):
        measured = rehearse(load(), size, CPU)
    # Shards of ceil(1001 / 64) = 16: the 63rd has the rest, nothing is left for the last.
    assert (size.classes_per_rank, measured["classes_per_rank"]) == (16, 0)


def test_the_largest_number_of_classes_is_where_it_stops_fitting(load):
    config = load("backbone.embedding_size=64")
    device = DEVICES["cpu"]
    with pretend_ranks(8):
        largest = make_plan(config, JobSize(10_000, 1, 8), device).largest_num_classes
        for num_classes, fits in ((int(0.99 * largest), True), (int(1.01 * largest), False)):
            assert make_plan(config, JobSize(num_classes, 1, 8), device).fits == fits
        advice = dict(remedies(config, JobSize(2 * largest, 1, 8), device))
    # Of 12 D bytes a class centres, momentum and statistics cost 4 D each.
    halves = "head.centre_dtype=bf16 head.momentum_dtype="
    assert list(advice)[:2] == [f"{halves}none", "margin.name=arcface"]  # 6 D, 8 D
    assert set(list(advice)[2:4]) == {f"{halves}bf16", "margin.statistic=target_cosine"}
    assert set(list(advice)[4:]) == {"head.momentum_dtype=bf16", "margin.statistic_dtype=bf16"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        # 20,000 classes of a rank times D = 64: the state of the classes is what is large.
        (["data.batch_size=4", "backbone.embedding_size=64"], "margin.statistic=target_cosine"),
        (
            [
                "optimizer.name=lamb",
                "optimizer.implementation=apex",
                "head.logit_cache_bytes=2000000",
            ],
            "optimizer.name=sgd",
        ),
        # Here it is the activations; DDP cannot accumulate with a static graph.
        (
            ["data.batch_size=32", "backbone.static_graph=true", "margin.scale=32"],
            "data.batch_size=16 optimizer.accumulate=2 backbone.static_graph=false",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_every_remedy_saves_what_it_says(load, overrides, named):
    """Each is handed to the configuration's reader, as a user would, and planned again."""
    size = JobSize(160_000, 1, 8)
    with pretend_ranks(8):
        advice = dict(remedies(load(*overrides), size, DEVICES["cpu"]))
        now = sum(memory_items(load(*overrides), size).values())
        assert named in advice
        for text, total in advice.items():
            changed = load(*overrides, *text.split())
            assert sum(memory_items(changed, size).values()) == total < 0.98 * now, text
            scales = {build_margin(**c.margin).scale for c in (load(*overrides), changed)}
            assert len(scales) == 1, text


def test_statistics_that_are_small_already_are_no_remedy(load):
    with pretend_ranks(8):
        config = load("margin.name=kappaface", "margin.statistic=target_cosine")
        advice = dict(remedies(config, JobSize(160_000, 1, 8), DEVICES["cpu"]))
    assert "margin.statistic=target_cosine" not in advice


def test_buckets_are_filled_from_the_end():
    assert bucket_sizes([10, 20, 100_000, 30], 0.25) == [100_030, 30]
    assert bucket_sizes([5], 25.0) == [5]


def test_time_follows_the_rates(load, tmp_path):
    config = load("data.batch_size=32")
    size = JobSize(100_000, 1_000_000, 8)
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"calibration": {"backbone_flops": 1e9, "head_flops": 2e9}}))
    with pretend_ranks(8):
        plan = make_plan(config, size, calibrated(DEVICES["h200"], [str(path)], "tiny"))
    # Three times forward for 32 images; 8 x 32 images, 12,500 rows, D = 16, four products.
    head = 2 * 256 * 12_500 * 16 * 4 / 2e9
    assert plan.step_seconds["head"] == pytest.approx(head, rel=0.01)
    speed = 8 * 32 / sum(plan.step_seconds.values())
    assert plan.images_per_second == pytest.approx(speed)
    assert plan.seconds_in_all == pytest.approx(1_000_000 / speed)
    path.write_text('{"classes": 3}')
    with pytest.raises(ValueError, match="holds no rates, expected a JSON report"):
        calibrated(DEVICES["h200"], [str(path)], "tiny")


def test_the_head_takes_what_its_benchmark_took(load, tmp_path):
    """The report of benchmark_head.py, with sampling and a cache of some logits."""
    overrides = ["head.sample_rate=0.1", "head.logit_cache_bytes=1000000", "data.batch_size=64"]
    sizes = {"classes": 80_000, "ranks": 2, "batch": 128, "embedding": 16}
    settings = {"sample_rate": 0.1, "logit_cache_bytes": 1_000_000}
    report = {**sizes, **settings, "streaming": {"seconds": 0.123}}
    path = tmp_path / "head.json"
    path.write_text(json.dumps(report))
    device = calibrated(DEVICES["h200"], [str(path)], "tiny")
    seconds = head_seconds(load(*overrides), JobSize(80_000, 1, 2), device)
    assert seconds == pytest.approx(0.123, rel=1e-6)
    for content in ('{"calibration": {"head_flops": -1}}', '{"calibration": {"flops": "fast"}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="expected a rate above 0"):
            calibrated(DEVICES["h200"], [str(path)], "tiny")
    path.write_text('{"calibration": {"head_flops": 1e9}, "backbone": "r50"}')
    with pytest.raises(ValueError, match=r"measured with r50, and backbone\.name is tiny"):
        calibrated(DEVICES["h200"], [str(path)], "tiny")
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no rates"):
        calibrated(DEVICES["h200"], [str(path)], "tiny")
