"""A student and its teacher: the step's gradients against autograd, and pairs that do not fit."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.file import load_config
from kappaface_dist.config.keys import Backbone, Config, Data, Distill, Optimizer, Run
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.models.export import save_backbone
from kappaface_dist.models.teacher import load_teacher
from kappaface_dist.planning.memory import JobSize, memory_items
from kappaface_dist.planning.plan import make_plan
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.planning.step_time import DEVICES
from kappaface_dist.training.build import build_learner
from kappaface_dist.training.distillation import build_distiller
from kappaface_dist.training.step import train_step

CPU = torch.device("cpu")
SIZE, EMBEDDING, CLASSES, IMAGES = 32, 16, 6, 4


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(3)
    network = build_backbone("tiny_gn", embedding_size=EMBEDDING, image_size=SIZE)
    path = tmp_path_factory.mktemp("teacher") / "backbone.safetensors"
    save_backbone(path, network, name="tiny_gn", embedding_size=EMBEDDING, image_size=SIZE)
    return path


def configuration(teacher_file, embedding_size=EMBEDDING, cached=False, **distill):
    return Config(
        run=Run(steps=1),
        data=Data(train="x.rec", batch_size=IMAGES, image_size=SIZE),
        backbone=Backbone(name="tiny_gn", embedding_size=embedding_size),
        optimizer=Optimizer(accumulate=2, cache_embeddings=cached, clip_norm=None, lr=0.1),
        distill=Distill(model=teacher_file and str(teacher_file), **distill),
        margin={"name": "cosface", "margin": 0.1, "scale": 8.0},
    )


def random_batches():
    generator = torch.Generator().manual_seed(5)
    return [
        Batch(
            torch.rand(IMAGES, 3, SIZE, SIZE, generator=generator) * 2 - 1,
            torch.randint(CLASSES, (IMAGES,), generator=generator),
        )
        for _ in range(2)
    ]


def gradients(config):
    """(gradient by name of one step, moved centres, the learner)."""
    learner = build_learner(config, np.full(CLASSES, 5), CPU)
    train_step(learner, random_batches(), 0.1, 0)
    found = {
        name: p.grad.clone() for name, p in learner.network.named_parameters() if p.grad is not None
    }
    return found, learner.head.weight_KD.clone(), learner


def expected_gradients(config, teacher_file):
    """Of the teacher's loss alone, written anew, by autograd."""
    student = build_learner(config, np.full(CLASSES, 5), CPU).network
    teacher = load_teacher(str(teacher_file), SIZE).network
    total = 0.0
    for batch in random_batches():
        ours = student(batch.image_B3HW)
        with torch.no_grad():
            theirs = teacher(batch.image_B3HW)
        if config.distill.kind == "cosine":
            loss = (1 - F.cosine_similarity(ours, theirs)).mean()
        else:
            pairs = [(i, j) for i in range(IMAGES) for j in range(i)]
            loss = torch.stack(
                [
                    F.cosine_similarity(ours[i], ours[j], dim=0)
                    - F.cosine_similarity(theirs[i], theirs[j], dim=0)
                    for i, j in pairs
                ]
            )
            loss = loss.square().mean()
        total = total + loss / 2
    (config.distill.weight * total).backward()
    grads = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return grads, total.item()


@pytest.mark.parametrize(
    ("kind", "cached", "embedding_size"),
    [("cosine", False, EMBEDDING), ("cosine", True, EMBEDDING), ("relation", False, 24)],
)
def test_gradients_are_those_of_both_losses(teacher_file, kind, cached, embedding_size):
    alone, centres, _ = gradients(configuration(None, embedding_size, cached))
    config = configuration(teacher_file, embedding_size, cached, kind=kind, weight=3.0)
    expected, loss = expected_gradients(config, teacher_file)
    both, centres_of_both, learner = gradients(config)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient - alone[name], expected[name], rtol=1e-3, atol=1e-4)
    # The head learns from its own loss, with a teacher or without.
    torch.testing.assert_close(centres_of_both, centres)
    assert learner.distiller.take() == pytest.approx(
        {"distill_loss": loss, "distill_left_out": 0.0}, abs=1e-5
    )
    assert learner.distiller.take() == {}
    config = configuration(
        teacher_file, embedding_size, cached, kind=kind, weight=3.0, margin_loss=False
    )
    taught, centres_of_taught, _ = gradients(config)
    for name, gradient in taught.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(centres_of_taught, centres)


def test_images_that_the_teacher_fails_on_are_left_out_and_said(teacher_file, caplog):
    learner = build_learner(configuration(teacher_file), np.full(CLASSES, 5), CPU)
    distiller = learner.distiller
    image = random_batches()[0].image_B3HW
    taught = distiller.network(image)
    ours = torch.randn(IMAGES, EMBEDDING, generator=torch.Generator().manual_seed(1))
    distiller.network = lambda _: taught.clone().index_fill_(0, torch.tensor([1]), torch.nan)
    loss = distiller.loss(ours.requires_grad_(), image)
    kept = [0, 2, 3]
    expected = (1 - F.cosine_similarity(ours[kept], taught[kept])).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    assert ours.grad.isfinite().all()
    assert distiller.take()["distill_left_out"] == 1
    assert "embeddings of 1 images are not finite" in caplog.text


def test_the_plan_counts_it(teacher_file):
    with pretend_ranks(2):
        size = JobSize(100, 1000, 2)
        alone = make_plan(configuration(None), size, DEVICES["cpu"])
        both = make_plan(configuration(teacher_file), size, DEVICES["cpu"])
    network = load_teacher(str(teacher_file), SIZE).network
    weights = sum(4 * t.numel() for t in network.state_dict().values())
    more = {k: v for k, v in both.memory_bytes.items() if k not in alone.memory_bytes}
    assert more.keys() == {"teacher", "teacher_activations"}
    assert more["teacher"] == weights
    # One feature map of its first layer, in and out, and not those of all layers.
    first_map = 4 * IMAGES * 16 * (SIZE // 2) ** 2
    assert first_map <= more["teacher_activations"] < 20 * first_map
    # A forward pass beside a student of the same kind, which takes three.
    share = both.step_seconds["teacher"] / both.step_seconds["backbone"]
    assert 0.02 < share <= 1 / 3
    assert "teacher" not in alone.step_seconds


def write_onnx(path, operators, out_shape):
    """A graph that another program might have written: what it does to the input, then a mean."""
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, out_shape)
    numbers = [
        helper.make_tensor("mean", TensorProto.FLOAT, [], [127.5]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 127.5]),
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
    ]
    nodes, name = [], "data"
    for operator, number in operators:
        nodes.append(helper.make_node(operator, [name, number], [f"{name}_"]))
        name = f"{name}_"
    keep = int(len(out_shape) == 4)
    nodes.append(helper.make_node("ReduceMean", [name, "axes"], ["out"], keepdims=keep))
    graph = helper.make_graph(nodes, "g", [image], [out], numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


def test_insightfaces_onnx_files_take_pixels_as_they_were_made(tmp_path):
    """Older ones subtract the mean themselves; both must see the same image."""
    write_onnx(tmp_path / "new.onnx", [], ["n", 3])
    write_onnx(tmp_path / "old.onnx", [("Sub", "mean"), ("Mul", "scale")], ["n", 3])
    image = random_batches()[0].image_B3HW
    for name in ("new", "old"):
        teacher = load_teacher(str(tmp_path / f"{name}.onnx"), SIZE)
        assert (teacher.embedding_size, teacher.settings) == (3, None)
        torch.testing.assert_close(
            teacher.network(image), image.mean(dim=(2, 3)), atol=1e-6, rtol=0
        )


def test_insightfaces_pth_is_a_teacher(tmp_path, teacher_file):
    torch.manual_seed(3)
    network = build_backbone("tiny_gn", embedding_size=EMBEDDING, image_size=SIZE)
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    teacher = load_teacher(str(tmp_path / "backbone.pth"), SIZE)
    exported = load_teacher(str(teacher_file), SIZE)
    assert teacher.digest == exported.digest
    with pytest.raises(ValueError, match=r"for images of 48 pixels \(data\.image_size\), does not"):
        load_teacher(str(tmp_path / "backbone.pth"), 48)


def test_pairs_that_do_not_fit_are_one_sentence(teacher_file, tmp_path):
    with pytest.raises(ValueError, match=r"takes images of 32 pixels, and data\.image_size is 48"):
        load_teacher(str(teacher_file), 48)
    message = r"gives 16 numbers, and backbone\.embedding_size is 24: .* distill\.kind=relation"
    with pytest.raises(ValueError, match=message):
        build_distiller(configuration(teacher_file, 24), CPU)
    write_onnx(tmp_path / "x.onnx", [], ["n", 3])
    with pytest.raises(ValueError, match=r"does not take two images of 48 pixels"):
        load_teacher(str(tmp_path / "x.onnx"), 48)
    with pytest.raises(ValueError, match="what it takes cannot be counted"), pretend_ranks(1):
        memory_items(configuration(tmp_path / "x.onnx"), JobSize(9, 9, 1))
    write_onnx(tmp_path / "map.onnx", [], ["n", 3, 1, 1])
    with pytest.raises(ValueError, match=r"gives \[2, 3, 1, 1\] for two images"):
        load_teacher(str(tmp_path / "map.onnx"), SIZE)
    file = tmp_path / "config.yaml"
    file.write_text("run: {steps: 1}\ndata: {train: x.rec, batch_size: 1}\n")
    for setting, message in (
        ("distill.weight=2", r"distill\.model, the teacher, is not"),
        ("distill.kind=nearest", r"distill\.kind is .nearest.: choose one of cosine, relation"),
        ("distill={model: a.onnx, kind: relation}", r"data\.batch_size is 1, which has no pairs"),
        ("distill.weight=0", r"distill\.weight is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config(file, [setting])
