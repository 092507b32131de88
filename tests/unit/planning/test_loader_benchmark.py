"""The contestants deliver, each in a process of its own."""

from kappaface_dist.made_up_faces.dataset import write_faces
from kappaface_dist.planning.loader_benchmark import Task, median, take_turns


def test_every_contestant_has_its_turn(tmp_path):
    write_faces(tmp_path, num_identities=4, num_unseen=3, seed=1, image_size=32, processes=1)
    task = Task(str(tmp_path / "train.rec"), "cpu", "cpu", False, 8, 32, "flip", 1)
    found = take_turns(task, num_rounds=1, seconds=0.3, cores=1)
    assert list(found) == ["ours", "dali_reader", "torch_dataloader"]
    for name in ("ours", "torch_dataloader"):
        assert found[name]["images_per_second"] > 0


def test_a_failed_turn_is_said():
    assert median([{"x": 1.0}, {"error": "broken"}, {"x": 3.0}]) == {"error": "broken"}
    assert median([{"x": 1.0}, {"x": 5.0}, {"x": 3.0}]) == {"x": 3.0}
