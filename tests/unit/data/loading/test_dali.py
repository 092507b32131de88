"""How DALI's images come from the thread that copies them to the stream that trains, without a GPU.

DALI itself works on the CPU here; the streams are recorded (`streams.py`).
"""

import numpy as np
import pytest
import torch

from kappaface_dist.data.loading import dali
from kappaface_dist.data.loading.augment import draw_changes
from kappaface_dist.data.loading.cpu import Request
from kappaface_dist.data.sources.catalog import open_catalog
from tests.planted import planted
from tests.unit.data.loading.streams import DEFAULT, Event, races, record_streams
from tests.unit.data.made_records import write_records

NUM_BATCHES, BATCH_SIZE, SIZE = 6, 4, 32
needs_dali = pytest.mark.skipif(not dali.dali_is_installed(), reason="DALI is not installed")


@pytest.fixture
def take_batches(tmp_path, monkeypatch):
    """Batches through the decoder for a GPU, as a training step takes them; the log of streams."""
    from nvidia.dali.plugin import pytorch as plugin

    from kappaface_dist.data.loading import dali_graph

    catalog = open_catalog(write_records(tmp_path / "train.rec", list(range(20)), size=SIZE))
    build_pipeline, feed_ndarray = dali_graph.build_pipeline, plugin.feed_ndarray
    log = record_streams(monkeypatch)

    def on_cpu(*args, **settings):
        return build_pipeline(*args, **{**settings, "device_id": None})

    def copy(images, out_B3HW, cuda_stream=None):
        log.add("write", cuda_stream.name, out_B3HW.data_ptr())
        feed_ndarray(images, out_B3HW)

    monkeypatch.setattr(dali_graph, "build_pipeline", on_cpu)
    monkeypatch.setattr(plugin, "feed_ndarray", copy)

    def take():
        decoder = dali.DaliDecoder(
            catalog,
            batch_size=BATCH_SIZE,
            image_size=SIZE,
            augment="flip",
            num_threads=1,
            device=torch.device("cuda", 0),
            dali_decodes=False,
        )
        requests = [
            Request(np.arange(BATCH_SIZE) + number, draw_changes("flip", 0, np.arange(BATCH_SIZE)))
            for number in range(NUM_BATCHES)
        ]
        taken = []
        for batch in decoder.batches(requests, ahead=2):
            log.add("read", log.stream(), batch.image.data_ptr())
            taken.append(batch.taken_B.tolist())
        assert taken == [list(range(n, n + BATCH_SIZE)) for n in range(NUM_BATCHES)]
        return log.events

    return take


@needs_dali
def test_no_stream_touches_an_image_that_another_is_not_done_with(take_batches):
    events = take_batches()
    for what in ("take", "write", "read", "record"):
        assert sum(event.what == what for event in events) == NUM_BATCHES
    assert not races(events)


@needs_dali
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("stream.synchronize()", "pass"),
        ("item.image.record_stream(torch.cuda.current_stream(self._device))", "pass"),
        ("with torch.cuda.stream(stream):", "if stream:"),
    ],
)
def test_a_wait_that_is_left_out_of_the_source_is_noticed(take_batches, before, after):
    with planted("kappaface_dist/data/loading/dali.py", before, after):
        assert races(take_batches())


SIDE = "side 1"
SOUND = [Event("take", SIDE, 1), Event("write", SIDE, 1), Event("synchronize", SIDE)]
USED = [Event("record", DEFAULT, 1), Event("read", DEFAULT, 1)]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        # As it was: the memory is the default stream's, whose step may still read what lay there.
        (
            [Event("take", DEFAULT, 1), *SOUND[1:], *USED],
            f"of {DEFAULT} is written on {SIDE} unwaited",
        ),
        ([*SOUND[:2], *USED], "read on default before it is written"),
        ([*SOUND, USED[1]], "reused on side 1 while default reads it"),
    ],
)
def test_the_oracle_knows_a_race(events, words):
    assert any(words in race for race in races(events))
    waits = [Event("wait", SIDE, DEFAULT)]
    assert not races([*SOUND, *USED])
    assert not races([Event("take", DEFAULT, 1), *waits, *SOUND[1:], *USED])
