"""The pictures of a comparison."""

from matplotlib.figure import Figure

from kappaface_dist.margin_study.report import draw_losses


def test_losses_are_drawn_over_the_epochs_that_all_seeds_have(monkeypatch, tmp_path):
    """An arm that leaves images out has more epochs in as many steps, and not in every seed."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: saved.append(figure))
    details = {
        "kappaface": {"loss_by_epoch": [[3.0, 2.0], [5.0, 4.0]]},
        "cleaned": {"loss_by_epoch": [[2.0, 2.0, 1.0], [4.0, 3.0]]},
        "longer": {"loss_by_epoch": [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]},
        "without": {"loss_by_epoch": []},
    }
    draw_losses(tmp_path / "losses.png", {"reference": "kappaface", "details": details})
    loss, difference = saved[0].axes
    assert [list(line.get_ydata()) for line in loss.lines] == [
        [4.0, 3.0],
        [3.0, 2.5],
        [1.5, 1.5, 1.5],
    ]
    cleaned, longer, _ = difference.lines
    assert list(cleaned.get_ydata()) == [-1.0, -0.5]
    assert list(longer.get_ydata()) == [-2.5, -1.5]


def test_no_two_arms_are_drawn_alike(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: saved.append(figure))
    details = {f"arm {n}": {"loss_by_epoch": [[3.0, 2.0]]} for n in range(25)}
    draw_losses(tmp_path / "losses.png", {"reference": "arm 0", "details": details})
    lines = saved[0].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 25
