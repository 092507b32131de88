"""Centres and momentum in fewer bytes: what they take, what they cost, and that nothing depends on
the number of ranks or on a stop in between.
"""

import pytest
import torch
import torch.nn.functional as F

from kappaface_dist.checkpoint.tensors import load, one_state, write
from kappaface_dist.checkpoint.transplant import take_over
from kappaface_dist.head import AdamWRows, ArcFace, PartialFC, SGDRows
from tests.head_steps import take_steps
from tests.processes import run_on_ranks

BF16 = torch.bfloat16
C, D, G = 300, 32, 60
NO_MOMENTUM = SGDRows(momentum=0.0, weight_decay=0.0, lr_factor=10.0)
PLAIN = SGDRows(weight_decay=0.0)


def images(step, people_CD):
    generator = torch.Generator().manual_seed(step)
    label_G = torch.randint(C, (G,), generator=generator)
    noise_GD = torch.randn(G, D, generator=generator) / D**0.5
    return people_CD[label_G] + 0.7 * noise_GD, label_G


def train(num_steps, *, nearest=False, seed=0, **settings):
    """Mean loss of the last third of the steps; nearest: the control, rounded so after each."""
    generator = torch.Generator().manual_seed(1000 + seed)
    people_CD = F.normalize(torch.randn(C, D, generator=generator))
    head = PartialFC(C, D, ArcFace(scale=16.0, margin=0.2), seed=seed, **settings)
    losses = []
    for step in range(num_steps):
        embedding_GD, label_G = images(10_000 * seed + step, people_CD)
        loss = head(embedding_GD.requires_grad_(), label_G)
        loss.backward()
        head.step(0.05 * (1.0 - step / num_steps) ** 2)
        if nearest:
            head.weight_KD.copy_(head.weight_KD.bfloat16())
        losses.append(loss.item())
    return sum(losses[-num_steps // 3 :]) / (num_steps // 3)


def test_centres_of_two_bytes_learn_as_those_of_four():
    """Where rounding to the nearest, the control, loses steps; paired runs, the same images."""
    apart = {}
    for seed in range(2):
        plain, memoryless = (train(120, seed=seed, optimizer=o) for o in (PLAIN, NO_MOMENTUM))
        half = SGDRows(weight_decay=0.0, momentum_dtype=BF16)
        for name, expected, settings in (
            ("stochastic", plain, {"optimizer": half, "centre_dtype": BF16}),
            ("no momentum", memoryless, {"optimizer": NO_MOMENTUM, "centre_dtype": BF16}),
            ("nearest", plain, {"optimizer": PLAIN, "nearest": True}),
        ):
            difference = train(120, seed=seed, **settings) - expected
            apart[name] = apart.get(name, 0.0) + difference / 2
    print(apart)
    assert abs(apart["stochastic"]) < 0.01
    assert abs(apart["no momentum"]) < 0.01
    assert apart["nearest"] > 3 * abs(apart["stochastic"])


SIZES = {
    8.0: {},
    6.0: {"optimizer": SGDRows(momentum_dtype=BF16)},
    4.0: {"optimizer": SGDRows(momentum_dtype=BF16), "centre_dtype": BF16},
    2.0: {"optimizer": NO_MOMENTUM, "centre_dtype": BF16},
}


@pytest.mark.parametrize(
    ("bytes_each", "settings"),
    [
        *SIZES.items(),
        (12.0, {"optimizer": AdamWRows()}),
        (6.0, {"optimizer": AdamWRows(square_by_row=True), "centre_dtype": BF16}),
    ],
)
def test_the_bytes_of_a_parameter(bytes_each, settings):
    head = PartialFC(C, 512, ArcFace(), **settings)
    state = head.sharded_state()
    kept = [state["weight"], *(t for k, t in state.items() if k.startswith("optimizer."))]
    found = sum(t.untyped_storage().nbytes() for t in kept) / (C * 512)
    assert bytes_each <= found <= bytes_each + 8 / 512


def go_on(head, first, last):
    """Steps first..last-1; returns the losses."""
    people_CD = torch.randn(C, D, generator=torch.Generator().manual_seed(9))
    return take_steps(head, (images(step, people_CD) for step in range(first, last)), 0.1)[0]


def one_step():
    head = PartialFC(C, D, ArcFace(), centre_dtype=BF16, seed=5)
    before = head.weight_KD.clone()
    losses = go_on(head, 0, 1)
    return losses, before.float().numpy(), head.weight_KD.float().numpy()


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_any_number_of_ranks_rounds_alike(num_ranks):
    """From the same centres; only where sums of other orders differ does a number round apart."""
    losses, before, alone = one_step()
    parts = run_on_ranks(num_ranks, one_step)
    start, together = (torch.cat([torch.from_numpy(p[i]) for p in parts]) for i in (1, 2))
    assert torch.equal(start, torch.from_numpy(before))
    torch.testing.assert_close(parts[0][0], losses, rtol=1e-5, atol=0)
    apart = (together != torch.from_numpy(alone)).double().mean()
    assert apart < 1e-3
    assert (together != start).double().mean() > 0.3


@pytest.mark.parametrize("settings", [{}, {"sample_rate": 0.3}, {"optimizer": NO_MOMENTUM}])
def test_going_on_from_a_checkpoint_repeats_the_run(settings, tmp_path):
    heads = [PartialFC(C, D, ArcFace(), centre_dtype=BF16, seed=5, **settings) for _ in range(2)]
    go_on(heads[0], 0, 2)
    state = heads[0].sharded_state()
    write(tmp_path / "a", one_state({}, state, C), {})
    counters = heads[0].counters()
    expected = go_on(heads[0], 2, 4)
    load(tmp_path / "a", {}, heads[1].sharded_state(), C)
    heads[1].load_counters(counters)
    assert go_on(heads[1], 2, 4) == expected
    assert torch.equal(heads[0].weight_KD, heads[1].weight_KD)


def test_a_skipped_step_changes_no_bit():
    head = PartialFC(C, D, ArcFace(), centre_dtype=BF16)
    go_on(head, 0, 1)
    before = {name: tensor.clone() for name, tensor in head.sharded_state().items()}
    embedding_GD, label_G = images(0, torch.randn(C, D))
    head(embedding_GD.requires_grad_(), label_G).backward()
    head.step(0.1, skip=torch.tensor(True))
    torch.testing.assert_close(head.sharded_state(), before, rtol=0, atol=0)


def test_the_gradient_is_that_of_the_same_centres_in_fp32():
    half, whole = (PartialFC(C, D, ArcFace(), centre_dtype=dtype) for dtype in (BF16, None))
    whole.weight_KD.copy_(half.weight_KD)
    found = []
    for head in (half, whole):
        embedding_GD, label_G = images(0, torch.randn(C, D, generator=torch.manual_seed(1)))
        loss = head(embedding_GD.requires_grad_(), label_G)
        loss.backward()
        found.append((loss, embedding_GD.grad, head.weight_gradient()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("now", [None, BF16])
def test_centres_of_another_type_are_taken_over_and_it_is_said(now, tmp_path, caplog):
    then = BF16 if now is None else None
    old = PartialFC(C, D, ArcFace(), centre_dtype=then, seed=1)
    go_on(old, 0, 2)
    state = {f"head.{name}": tensor for name, tensor in old.sharded_state().items()}
    write(tmp_path / "a", one_state({}, state, C), {"head": old.counters()})
    expected = old.weight_KD.to(now or torch.float32)
    for how in ("resume", "init"):
        caplog.clear()
        optimizer = NO_MOMENTUM if how == "resume" else None
        head = PartialFC(C, D, ArcFace(), centre_dtype=now, seed=2, optimizer=optimizer)
        if how == "init":
            take_over(head, tmp_path / "a", None)
        else:
            own = {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}
            load(tmp_path / "a", {}, own, C)
            assert "holds head.optimizer.momentum, which this run does not use" in caplog.text
        assert torch.equal(head.weight_KD, expected)
        assert "holds head.weight in" in caplog.text


def test_adamws_second_moment_by_row_is_that_of_the_rows_mean_square():
    optimizer = AdamWRows(weight_decay=0.05, square_by_row=True)
    weight_RD = torch.randn(5, D, dtype=torch.float64)
    state, expected_RD = optimizer.init_state(weight_RD), weight_RD.clone()
    mean, square = torch.zeros(5, D, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for step in range(1, 4):
        gradient_RD = torch.randn(5, D, dtype=torch.float64)
        mean = 0.9 * mean + 0.1 * gradient_RD
        square = 0.999 * square + 0.001 * gradient_RD.pow(2).mean(dim=1)
        size_R1 = (square / (1 - 0.999**step)).sqrt()[:, None] + 1e-8
        expected_RD = expected_RD * (1 - 0.01 * 0.05) - 0.01 * mean / (1 - 0.9**step) / size_R1
        optimizer.update(weight_RD, gradient_RD, state, 0.01)
    torch.testing.assert_close(weight_RD, expected_RD, rtol=1e-12, atol=0)


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="products are in float64: use fp32 or bf16"):
        PartialFC(C, D, ArcFace(), dtype=torch.float64, centre_dtype=BF16)
    with pytest.raises(ValueError, match="the upper one alone: leave it out"):
        PartialFC(C, D, ArcFace(), dtype=BF16, centre_dtype=BF16, split_centres=True)
