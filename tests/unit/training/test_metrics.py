"""What a run reports."""

import json
import logging
import shutil
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kappaface_dist.training.metrics import Meter, Reporter, log_line
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.run_log import start_logging


def reporter(folder, first_step=0, **options):
    settings = {"tensorboard": False, "wandb": "off", "run_name": "test", "settings": {}}
    return Reporter(folder, first_step, 10, **{**settings, **options})


def test_lines_of_steps_that_are_repeated_are_dropped(tmp_path):
    first = reporter(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    path = tmp_path / "metrics.jsonl"
    # A crash in the middle of a line.
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]

    second = reporter(tmp_path, first_step=2)
    second.write(3, {"loss": 30.0})
    second.close()
    assert read_metrics(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = reporter(tmp_path, tensorboard=True)
    numbers = {"loss": 1.5, "images_per_second": 8.0, "margin_mean": 0.5, "accuracy/lfw": 0.75}
    report.write(7, numbers)
    report.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == [
        "train/loss", "speed/images_per_second", "head/margin_mean", "accuracy/lfw"
    ]  # fmt: skip
    for name, value in zip(events.Tags()["scalars"], numbers.values(), strict=True):
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(7, value)]


def test_the_meter_leaves_pauses_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = Meter(started=now)
    now = 101.0
    with meter.pause():
        now = 111.0
    now = 113.0
    assert (meter.seconds(), meter.paused) == (3.0, 10.0)
    assert meter.wait_for(iter([5])) == 5


def test_log_line_says_how_long_it_will_take():
    numbers = dict.fromkeys(
        ("epoch", "loss", "learning_rate", "data_wait_share", "margin_mean", "margin_min"), 0.5
    )
    line = log_line(3, {**numbers, "margin_max": 0.75, "images_per_second": 10.0}, 36_610)
    assert line.startswith("step 3  epoch 0.50  loss 0.500")
    assert "margin 0.500 (0.500 to 0.750)" in line
    assert line.endswith("left 1:01:01")
    assert "rank-1" not in line
    numbers |= {"margin_max": 0.75, "images_per_second": 10.0, "rank_1": 0.123}
    assert "loss 0.500  rank-1 12.3%  lr" in log_line(3, numbers, 36_610)


def test_margins_are_told_once_after_a_refresh(tmp_path, caplog):
    report = reporter(tmp_path)
    measured = {
        "concentration_p25": 690.0,
        "concentration_p75": 710.0,
        "concentration_std": 763.0,
        "neutral_share": 0.25,
        "measured_image_share": 0.9,
        "margin_std": 0.0045,
    }
    with caplog.at_level(logging.INFO):
        report.tell_margins(1, {"loss": 1.0})  # a margin without statistics
        report.tell_margins(2, {"margin_refreshes": 0})
        assert not caplog.records
        for step, refreshes in ((3, 1), (4, 1), (5, 2)):
            report.tell_margins(step, {**measured, "margin_refreshes": refreshes})
        report.tell_margins(6, {**measured, "margin_refreshes": 3, "concentration_std": 20.0})
    report.close()
    told = [(record.levelname, record.getMessage()[:16]) for record in caplog.records]
    assert told == [
        ("INFO", "step 3: KappaFac"),
        ("WARNING", "step 3: KappaFac"),
        ("INFO", "step 5: KappaFac"),
        ("WARNING", "step 5: KappaFac"),
        ("INFO", "step 6: KappaFac"),
    ]
    assert "75.0% of the classes, with 90.0% of the images" in caplog.messages[0]
    assert "lie within 20" in caplog.messages[1]


@pytest.fixture
def restored_logging():
    yield
    logger = logging.getLogger("kappaface_dist")
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()
    logger.propagate = True


@pytest.mark.usefixtures("restored_logging")
def test_the_log_goes_to_a_file_on_rank_0_only(tmp_path):
    start_logging(tmp_path)
    logging.getLogger("kappaface_dist.training.trainer").info("hello")
    assert "INFO hello" in (tmp_path / "train.log").read_text()
    start_logging(None)
    logging.getLogger("kappaface_dist.training.trainer").info("not this")
    assert "not this" not in (tmp_path / "train.log").read_text()


def test_wandb_offline_is_one_run_over_restarts_and_holds_no_secret(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    secret = "0123456789abcdef" * 2 + "76543210"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        report = reporter(tmp_path, step - 1, wandb="offline", settings={"run": {"seed": 0}})
        report.write(step, {"loss": 2.0})
        report.close()
    number = (tmp_path / "wandb_id").read_text()
    # wandb keeps a file for each start, and `wandb sync` joins those of one number.
    runs = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 2
    assert {run.name for run in runs} == {f"run-{number}.wandb"}
    assert all(run.stat().st_size > 0 for run in runs)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [1, 2]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    other = tmp_path / "other"
    other.mkdir()
    reporter(other, wandb="offline").close()
    assert (other / "wandb_id").read_text() != number


def test_tensorboard_goes_on_where_the_checkpoint_was(tmp_path):
    for first_step, steps in ((0, range(1, 11)), (6, range(7, 9))):
        report = reporter(tmp_path, first_step, tensorboard=True)
        for step in steps:
            report.write(step, {"loss": float(step + first_step)})
        report.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        *((step, step) for step in range(1, 7)),
        (7, 13.0),
        (8, 14.0),
    ]


def test_a_full_disk_and_a_folder_that_is_gone_are_named(tmp_path):
    full = reporter(tmp_path)
    full.write(1, {"loss": 1.0})
    full._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(RuntimeError, match=r"metrics\.jsonl could not be written: .*No space left"):
        full.write(2, {"loss": 1.0})
    full.close()
    (tmp_path / "run").mkdir()
    gone = reporter(tmp_path / "run")
    gone.write(1, {"loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"metrics\.jsonl was deleted while the run"):
        gone.write(2, {"loss": 1.0})
    gone.close()


@pytest.mark.usefixtures("restored_logging")
def test_a_log_on_a_full_disk_is_said_once_and_the_console_goes_on(tmp_path, capsys):
    (tmp_path / "train.log").symlink_to("/dev/full")
    start_logging(tmp_path)
    log = logging.getLogger("kappaface_dist.training.trainer")
    for number in range(3):
        log.info("line %d", number)
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path}/train.log could not be written: [Errno 28] No space left") == 1
    assert [f"line {number}" in said for number in range(3)] == [True] * 3
    assert "Traceback" not in said


def test_tensorboard_on_a_full_disk_is_a_sentence(tmp_path, monkeypatch, capsys, caplog):
    report = reporter(tmp_path, tensorboard=True)
    report.write(1, {"loss": 1.0})
    # The writer of its thread; what it is given from now on meets a full disk.
    thread = report._writer.file_writer.event_writer._async_writer._worker
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(thread, "_record_writer", full)

    def write_on():
        for step in range(2, 2000):
            report.write(step, {"loss": 1.0})
            time.sleep(0.001)

    with pytest.raises(RuntimeError, match=r"tensorboard could not be written: .*No space left"):
        write_on()
    report.close()
    assert "Traceback" not in capsys.readouterr().err


def test_lines_end_with_the_best_so_far(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kappaface_dist")
    first = reporter(tmp_path)
    first.write(5, {"loss": 3.0}, "step 5")
    first.write(5, {"accuracy/lfw": 0.9, "accuracy/unseen": 0.6}, "step 5: lfw")
    first.write(10, {"accuracy/lfw": 0.8, "accuracy/unseen": 0.7}, "step 10: lfw")
    first.write(10, {"checkpoint_pause_seconds": 0.1}, "checkpoint")
    first.close()
    # A start after a stop knows what was before it, and no more: step 10 is done again.
    second = reporter(tmp_path, first_step=5)
    second.write(7, {"loss": 2.0}, "step 7")
    second.close()
    assert caplog.messages == [
        "step 5",
        "step 5: lfw  best lfw 90.00% at step 5, unseen 60.00% at step 5",
        "step 10: lfw  best lfw 90.00% at step 5, unseen 70.00% at step 10",
        "checkpoint",
        "step 7  best lfw 90.00% at step 5, unseen 60.00% at step 5",
    ]
