"""evaluate_pairs on one process: embeddings, what the set cannot say, and errors."""

import json

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from kappaface_dist.backbones import build_backbone
from kappaface_dist.data.images import decode_image, encode_jpeg
from kappaface_dist.evaluation.embedding import embed as embedding
from kappaface_dist.evaluation.embedding.embed import embed_images
from kappaface_dist.evaluation.one_to_one.bootstrap import bootstrap
from kappaface_dist.evaluation.one_to_one.pairs import evaluate_pairs, pixel_baseline, score_pairs
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs

CPU = torch.device("cpu")


def jpegs(count, seed=0, size=32):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [encode_jpeg(image.repeat(size // 4, 0).repeat(size // 4, 1)) for image in coarse]


def model_32():
    torch.manual_seed(0)
    return build_backbone("tiny", embedding_size=16, image_size=32)


def test_embeddings_are_flip_summed_and_normalised():
    payloads, model = jpegs(7), model_32()
    found = embed_images(model, payloads, image_size=32, batch_size=3, device=CPU)
    model.eval()
    for payload, row in zip(payloads, found, strict=True):
        pixels = torch.from_numpy(decode_image(payload, 32).astype(np.float32))
        image = ((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = (model(image) + model(torch.flip(image, [3])))[0].double()
        # float32 inside, in batches of another size.
        np.testing.assert_allclose(row, expected / expected.norm(), atol=1e-5)


def test_repeated_images_are_embedded_once():
    images = jpegs(4)
    payloads = [images[i] for i in (2, 0, 2, 1, 3, 0, 0, 2)]
    finished = []
    found = embed_images(
        model_32(), payloads, image_size=32, batch_size=3, device=CPU, progress=finished.append
    )
    assert sum(finished) == 4
    expected = embed_images(model_32(), images, image_size=32, batch_size=4, device=CPU)
    np.testing.assert_allclose(found, expected[[2, 0, 2, 1, 3, 0, 0, 2]], atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_returns_to_its_mode(fails):
    model = model_32().train()
    model.bn1.eval()
    payloads = [*jpegs(3), b"broken"] if fails else jpegs(4)
    modes = [module.training for module in model.modules()]
    statistics = model.bn1.running_mean.clone(), model.bn2.running_mean.clone()
    if fails:
        with pytest.raises(ValueError, match="image 3: not a readable image"):
            embed_images(model, payloads, image_size=32, batch_size=2, device=CPU)
    else:
        embed_images(model, payloads, image_size=32, batch_size=2, device=CPU)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(statistics[0], model.bn1.running_mean)
    assert torch.equal(statistics[1], model.bn2.running_mean)


def test_images_are_decoded_in_bounded_memory(monkeypatch):
    decoded, done, held = [], [0], []

    def counting(payload, size):
        decoded.append(payload)
        held.append(len(decoded) - done[0])
        return decode_image(payload, size)

    monkeypatch.setattr(embedding, "decode_image", counting)
    embed_images(
        model_32(),
        jpegs(40),
        image_size=32,
        batch_size=4,
        device=CPU,
        progress=lambda count: done.__setitem__(0, done[0] + count),
    )
    assert len(decoded) == 40
    # The batch in the model and the one decoded ahead.
    assert max(held) <= 2 * 4


class Colour(nn.Module):
    """Mean colour as embedding: what it must say about pairs is plain."""

    def forward(self, image_B3HW):
        return image_B3HW.mean(dim=(2, 3))


def coloured(same):
    """A pair of red images, or a red and a blue one, for each flag."""
    red, blue = (
        encode_jpeg(np.full((16, 16, 3), colour, np.uint8)) for colour in ((250, 0, 0), (0, 0, 250))
    )
    payloads = [payload for flag in same for payload in (red, red if flag else blue)]
    return PairFile(payloads, np.array(same, dtype=bool))


def test_a_model_that_is_always_right():
    result = evaluate_pairs(Colour(), coloured([True, False] * 20), image_size=16, device=CPU)
    assert (result.accuracy, result.accuracy_std, result.auc) == (1.0, 0.0, 1.0)
    assert result.tar_at_far == {
        "1e-1": 1.0, "1e-2": None, "1e-3": None, "1e-4": None, "1e-5": None, "1e-6": None
    }  # fmt: skip
    assert result.note.startswith("20 different pairs are not enough for FAR 1e-2, 1e-3")
    assert (result.num_pairs, result.num_same) == (40, 20)
    assert json.loads(json.dumps(result.summary()))["accuracy"] == 1.0


@pytest.mark.parametrize(("same", "kind"), [(True, "the same person"), (False, "different people")])
def test_one_kind_of_pairs_has_no_accuracy(same, kind):
    result = evaluate_pairs(Colour(), coloured([same] * 12), image_size=16, device=CPU)
    assert result.note.startswith(f"all 12 pairs are of {kind}")
    assert result.note.endswith("an accuracy means nothing")
    assert result.accuracy is result.auc is result.roc is None
    assert set(result.tar_at_far.values()) == {None}
    assert len(result.distance_P) == 12
    assert pixel_baseline(coloured([same] * 12)) is None


@pytest.mark.parametrize(
    "order", [lambda kind: kind, lambda kind: ~kind, lambda kind: np.roll(kind, 137)]
)
def test_the_order_of_the_list_does_not_change_the_accuracy(order):
    """Same pairs in one block and different ones in another, as LFW's one-fold lists have them."""
    generator = np.random.default_rng(0)
    block_P = order(np.arange(1000) < 500)
    distance_P = generator.normal(np.where(block_P, 1.4, 1.9), 0.4).clip(0, 4)
    places = [np.flatnonzero(block_P), np.flatnonzero(~block_P)]
    turns_P = np.stack(places, axis=1).ravel()
    blocks, turns = (
        score_pairs(distance_P[order_P], block_P[order_P]) for order_P in (np.arange(1000), turns_P)
    )
    # The oracle: scikit-learn's stratified folds, every threshold, by plain loops.
    grid, accuracies = np.arange(0, 4, 0.01), []
    for train, test in StratifiedKFold(10).split(distance_P, block_P):
        right = [np.mean((distance_P[train] < t) == block_P[train]) for t in grid]
        best = grid[int(np.argmax(right))]
        accuracies.append(np.mean((distance_P[test] < best) == block_P[test]))
    assert blocks.accuracy == turns.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert blocks.accuracy_std == pytest.approx(np.std(accuracies), abs=1e-12)
    assert "folds hold one kind only" in blocks.note
    assert "folds hold one kind only" not in turns.note
    identity_P2 = np.arange(2000).reshape(-1, 2)
    low, high = bootstrap(distance_P, block_P, identity_P2, {}, num_replicates=50).accuracy
    assert low < blocks.accuracy < high


def test_nine_pairs_of_a_kind_have_no_accuracy():
    result = evaluate_pairs(
        Colour(), coloured([True] * 40 + [False] * 9), image_size=16, device=CPU
    )
    assert (result.accuracy, result.auc) == (None, 1.0)
    assert result.note.startswith("40 same and 9 different pairs are not enough")


def test_too_few_pairs_for_folds():
    result = evaluate_pairs(Colour(), coloured([True, False] * 4), image_size=16, device=CPU)
    assert result.accuracy is None
    assert result.auc == 1.0
    assert result.note.startswith("8 pairs are not enough for an accuracy over 10 folds")


def test_the_real_set_says_why_it_says_nothing(shared_data):
    pairs = read_pairs(shared_data / "verification" / "small_lfw.bin")
    model = build_backbone("tiny", embedding_size=16, image_size=112)
    result = evaluate_pairs(model, pairs, image_size=112, device=CPU)
    assert result.note.startswith("all 10 pairs are of the same person")
    assert np.isfinite(result.distance_P).all()


def test_a_broken_image_and_a_diverged_model_are_named():
    pairs = coloured([True, False] * 10)
    pairs.payloads[7] = b"\xff\xd8 broken"
    with pytest.raises(ValueError, match="image 2 of pair 3: not a readable image"):
        evaluate_pairs(Colour(), pairs, image_size=16, device=CPU)
    with pytest.raises(ValueError, match="image 2 of pair 3: not a readable image"):
        pixel_baseline(pairs)
    with pytest.raises(ValueError, match="1 of 3 pairs have a distance that is not a number"):
        score_pairs(np.array([0.5, np.nan, 1]), np.array([True, False, True]))


def test_pixel_baseline_by_hand(shared_data):
    # Seven people of ORL: cosine of grey values, best of all thresholds, by plain loops.
    files = [shared_data / "orl" / f"s{s}" / f"{m}.pgm" for s in range(1, 8) for m in (1, 5)]
    payloads, same = [], []
    for i, first in enumerate(files):
        for second in files[i + 1 :]:
            payloads += [first.read_bytes(), second.read_bytes()]
            same.append(first.parent == second.parent)
    grey = [decode_image(payload, 20)[..., 0].astype(float).ravel() for payload in payloads]
    cosines = [
        a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(grey[::2], grey[1::2], strict=True)
    ]
    expected = max(np.mean((np.array(cosines) >= t - 1e-12) == same) for t in [*cosines, 2])
    assert pixel_baseline(PairFile(payloads, np.array(same)), size=20) == pytest.approx(expected)
    assert expected > 1 - np.mean(same)
