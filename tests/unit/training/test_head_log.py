"""The numbers of several heads in the log."""

from kappaface_dist.training.head_log import by_dataset, datasets_text

NUMBERS = {
    "loss": 1.0,
    "accuracy/lfw": 0.9,
    **{"margin_min/a": 0.1, "margin_mean/a": 0.2, "loss/a": 3.0, "rank_1/a": 0.25},
    "non_dominant_share/a": 0.125,
    **{"margin_min/b": 0.5, "margin_mean/b": 0.5},
}


def test_numbers_are_told_apart_by_dataset():
    assert by_dataset(NUMBERS) == {
        "a": {
            **{"margin_min": 0.1, "margin_mean": 0.2, "loss": 3.0, "rank_1": 0.25},
            "non_dominant_share": 0.125,
        },
        "b": {"margin_min": 0.5, "margin_mean": 0.5},
    }
    one = {"loss": 1.0, "margin_min": 0.1, "accuracy/lfw": 0.9}
    assert by_dataset(one) == {"": one}


def test_a_line_has_a_part_for_each():
    expected = "  a loss 3.000 rank-1 25.0% at other centres 12.5% margin 0.200  b margin 0.500"
    assert datasets_text(NUMBERS) == expected
    assert datasets_text({"loss": 1.0, "margin_min": 0.1}) == ""
