"""Several centres a class on real process groups, against one dense float64 tensor of them all."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from kappaface_dist.counter_random import mix64
from kappaface_dist.head import AdamWRows, Heads, KappaFace, PartialFC, SGDRows
from kappaface_dist.head.margins import Images
from kappaface_dist.head.shard import initial_centres
from kappaface_dist.parallel import ranks as parallel
from tests.dense_head import torch_optimizer
from tests.dense_margins import MARGINS, margin_loss
from tests.head_steps import own_images
from tests.processes import run_on_ranks

C, A, SIZE, NUM_IMAGES, NUM_STEPS, SEED, LR = 83, 3, 8, 24, 3, 5, 0.01
# Float64 sums in another order; a few steps at scale 64 amplify the roundings.
EXACT = {"rtol": 1e-8, "atol": 1e-10}
OPTIMIZERS = {"sgd": SGDRows(), "adamw": AdamWRows(weight_decay=0.05)}


def first_centres():
    rows = initial_centres(range(C * A), SIZE, SEED, torch.float64, torch.device("cpu"))
    return rows.view(C, A, SIZE)


def global_batch(step):
    """Images around one of their class's centres each, of norms 0.5 to 8; some beyond θ + m = π."""
    generator = torch.Generator().manual_seed(step)
    label_G = torch.randint(C, (NUM_IMAGES,), generator=generator)
    place_G = torch.randint(A, (NUM_IMAGES,), generator=generator)
    noise_GD = torch.randn(NUM_IMAGES, SIZE, dtype=torch.float64, generator=generator)
    unit_GD = F.normalize(F.normalize(first_centres()[label_G, place_G]) + 0.3 * noise_GD)
    unit_GD[-2:] *= -1
    norm_G = torch.linspace(0.5, 8, NUM_IMAGES, dtype=torch.float64)
    return unit_GD * norm_G[:, None], label_G


def train(names, optimizer, sample_rate, parts):
    """By margin: losses, embedding gradients, classes in use of each step; state; rank-1."""
    return {name: train_one(MARGINS[name], optimizer, sample_rate, parts) for name in names}


def train_one(margin, optimizer, sample_rate, parts):
    head = PartialFC(
        C,
        SIZE,
        margin,
        images_per_class=np.arange(1, C + 1),
        sample_rate=sample_rate,
        optimizer=OPTIMIZERS[optimizer],
        dtype=torch.float64,
        seed=SEED,
        sub_centres=A,
    )
    head.take_chunks_of(10)  # which is not whole classes
    losses, gradients, kept, rank_1 = [], [], [], []
    for step in range(NUM_STEPS):
        embedding_BD, label_B = map(own_images, global_batch(step))
        head.rank_one.start()
        if parts > 1:
            head.announce(label_B)
        embeddings, loss = [], 0.0
        for part_BD, part_B in zip(embedding_BD.chunk(parts), label_B.chunk(parts), strict=True):
            embeddings.append(part_BD.clone().requires_grad_())
            one = head(embeddings[-1], part_B) / parts
            one.backward()
            loss += one.item()
        losses.append(loss)
        gradient_BD = torch.cat([one.grad for one in embeddings]) / parallel.world_size()
        gradients.append(gradient_BD.numpy())
        index_S = head.micro_batches.pending[0].rows.index_S
        row_S = torch.arange(len(head.rows)) if index_S is None else index_S
        class_SA = (row_S + head.rows.start).view(-1, A) // A  # all centres of a class come along
        assert (class_SA == class_SA[:, :1]).all()
        kept.append(class_SA[:, 0].tolist())
        rank_1.append(head.rank_one.take())
        head.step(LR)
    state = {key: tensor.numpy() for key, tensor in head.sharded_state().items()}
    return losses, gradients, kept, state, rank_1


def image_numbers(num_ranks):
    """What is drawn for an image depends on its rank, and on its place there."""
    return torch.cat([torch.arange(NUM_IMAGES // num_ranks) + (r << 32) for r in range(num_ranks)])


def repeat_densely(margin, margin_C, optimizer, kept):
    """The same on one tensor [C, A, D]: losses, gradients, centres, how often each was chosen."""
    weight_CAD = first_centres().requires_grad_()
    dense = torch_optimizer(OPTIMIZERS[optimizer], weight_CAD)
    dense.param_groups[0]["lr"] = LR
    losses, gradients, rank_1, state, count_CA = [], [], [], {}, np.zeros((C, A))
    for step in range(NUM_STEPS):
        embedding_GD, label_G = global_batch(step)
        embedding_GD.requires_grad_()
        m_G = margin_C[label_G]
        unit_CAD = F.normalize(weight_CAD.detach(), dim=2)
        cosine_GCA = torch.einsum("gd,cad->gca", F.normalize(embedding_GD.detach()), unit_CAD)
        own_GA = cosine_GCA[torch.arange(NUM_IMAGES), label_G]
        np.add.at(count_CA, (label_G.numpy(), own_GA.argmax(dim=1).numpy()), 1)
        if hasattr(margin, "draw"):
            numbers_G = image_numbers(len(kept))
            images = Images(own_GA.amax(dim=1), m_G, None, mix64(SEED, step), numbers_G)
            m_G = margin.draw(images)
        kept_C = torch.zeros(C, dtype=torch.bool)
        kept_C[[c for part in kept for c in part[step]]] = True
        nearest_GC = cosine_GCA.amax(dim=2).masked_fill(~kept_C, -2.0)
        rank_1.append((nearest_GC.argmax(dim=1) == label_G).double().mean().item())
        loss, state = margin_loss(margin, embedding_GD, weight_CAD, label_G, m_G, state, kept_C)
        before, earlier = weight_CAD.detach().clone(), tensors_of(dense, weight_CAD)
        dense.zero_grad()
        loss.backward()
        dense.step()
        # Classes that were not drawn keep their rows and their state.
        with torch.no_grad():
            weight_CAD[~kept_C] = before[~kept_C]
            for name, tensor in tensors_of(dense, weight_CAD, copy=False).items():
                tensor[~kept_C] = earlier[name][~kept_C] if name in earlier else 0.0
        losses.append(loss.item())
        gradients.append(embedding_GD.grad.numpy())
    return losses, gradients, weight_CAD.detach().numpy(), count_CA, rank_1


def tensors_of(optimizer, weight_CAD, *, copy=True):
    found = optimizer.state[weight_CAD].items()
    rows = {k: v for k, v in found if torch.is_tensor(v) and v.shape == weight_CAD.shape}
    return {k: v.clone() if copy else v for k, v in rows.items()}


@pytest.mark.parametrize(
    ("num_ranks", "sample_rate", "parts", "optimizer", "names"),
    [
        (0, 1.0, 1, "adamw", ["kappaface"]),
        (1, 0.3, 1, "sgd", ["cosface"]),
        (2, 0.3, 3, "sgd", ["kappaface", "arcface", "magface"]),
        (3, 1.0, 1, "sgd", list(MARGINS)),
    ],
)
def test_a_class_is_as_near_as_its_nearest_centre(num_ranks, sample_rate, parts, optimizer, names):
    results = run_on_ranks(num_ranks, train, names, optimizer, sample_rate, parts)
    for name in names:
        own = [result[name] for result in results]
        state = {key: np.concatenate([one[3][key] for one in own]) for key in own[0][3]}
        margin_C = torch.from_numpy(state["margin"]).double()
        kept = [one[2] for one in own]
        losses, gradients, weight, count_CA, rank_1 = repeat_densely(
            MARGINS[name], margin_C, optimizer, kept
        )
        for one in own:
            np.testing.assert_allclose(one[0], losses, err_msg=name, **EXACT)
            if parts == 1:
                np.testing.assert_allclose(one[4], rank_1, err_msg=name)
        for step in range(NUM_STEPS):
            ours = np.concatenate([one[1][step] for one in own])
            np.testing.assert_allclose(ours, gradients[step], err_msg=name, **EXACT)
        np.testing.assert_allclose(state["weight"], weight, err_msg=name, **EXACT)
        np.testing.assert_array_equal(state["statistics.chosen"], count_CA, err_msg=name)
        assert (count_CA[:, 1:].sum(axis=0) > 0).all()
        if sample_rate < 1:
            assert len(kept[0][0]) < C / max(num_ranks, 1)
        if name == "kappaface":  # of the class, whichever centre its images are at
            labels = np.concatenate([global_batch(step)[1] for step in range(NUM_STEPS)])
            expected = np.bincount(labels, minlength=C)
            np.testing.assert_array_equal(state["statistics.weight"], expected)


def of_a_rank():
    """Collectives of a step of two heads; the share at other centres, before and after epochs."""
    heads = Heads(
        {n: PartialFC(C, SIZE, KappaFace(), seed=SEED, sub_centres=A) for n in "ab"},
        [NUM_IMAGES // 4] * 2,
        [1.0, 1.0],
    )
    embedding_GD, label_G = global_batch(0)
    arguments = own_images(embedding_GD).float().requires_grad_(), own_images(label_G)
    dist.barrier()
    with torch.profiler.profile() as profile:
        heads(*arguments).backward()
        heads.step(LR)
    collectives = sum(event.count for event in profile.key_averages() if "gloo:" in event.key)
    head = PartialFC(C, SIZE, KappaFace(), seed=SEED, sub_centres=A)
    shares = [head.summary().get("non_dominant_share")]
    for step in range(2):
        embedding_GD, label_G = global_batch(step)
        head(own_images(embedding_GD).float().requires_grad_(), own_images(label_G)).backward()
        head.discard()  # the centres stay where they are
        shares.append(head.summary()["non_dominant_share"])
        head.end_epoch()
    return collectives, shares


def test_three_collectives_and_the_share_of_images_at_other_centres():
    unit_CAD = F.normalize(first_centres(), dim=2)
    count_CA, expected = np.zeros((C, A)), []
    for step in range(2):
        embedding_GD, label_G = global_batch(step)
        own_GA = torch.einsum("gd,gad->ga", embedding_GD, unit_CAD[label_G])
        count_CA /= 2  # what an epoch before says counts half as much
        np.add.at(count_CA, (label_G.numpy(), own_GA.argmax(dim=1).numpy()), 1)
        expected.append(1 - count_CA.max(axis=1).sum() / count_CA.sum())
    for collectives, shares in run_on_ranks(2, of_a_rank):
        assert collectives == 3
        assert shares[0] is None
        np.testing.assert_allclose(shares[1:], expected, rtol=1e-6)
