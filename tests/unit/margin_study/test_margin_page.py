"""The page of a margin report says who."""

from kappaface_dist.margin_study.margin_page import summary_text


def test_names_are_in_the_tables():
    entry = {"images": 3, "concentration": 1.0, "margin": 0.5}
    classes = [
        {"class": 0, "name": "Ann | Lee\n", **entry},
        {"class": 1, "name": "no\udce9l", **entry},
        {"class": 2, "name": None, **entry},
    ]
    related = dict.fromkeys(
        f"{a}_with_{b}"
        for a in ("margin", "concentration")
        for b in ("log_images_pearson", "images_spearman")
    )
    margin = dict.fromkeys(("min", "max", "mean", "mean_over_images"), 0.5)
    size = {"images": 2, "classes": 9, "pearson": 0.5, "spearman": 0.4, "error": 1.0}
    read = {"unbiased": 0.301, "length": 0.45}
    found = {
        "embedded": 40,
        "by_images": [size | {"expected_error": 1.0}],
        "noise_share": None,
        "estimates": [
            {
                "photos": "2",
                "people": 21,
                "correlation": read,
                "difference": {"length": [0.1, 0.2]},
            },
            {"photos": "5", "people": 20, "correlation": read, "difference": {"length": [-1, 0.2]}},
        ],
    }
    text = summary_text(
        {
            "checkpoint": "x", "step": 1, "classes": 3, "images": 9, "neutral_share": 0.0,
            "margin": margin, "correlation": related, "by_images": [], "hardest": classes,
            "easiest": [], "reliability": found,
        }
    )  # fmt: skip
    rows = text.encode("utf-8").decode().splitlines()
    assert "| 0 Ann \\| Lee | 3 | 1.0 | 0.500 |" in rows
    assert "| 1 no\\udce9l | 3 | 1.0 | 0.500 |" in rows
    assert "| 2 | 3 | 1.0 | 0.500 |" in rows
    assert "| from so many photos | 2 | 5 |" in rows
    assert "| (classes) | 21 | 20 |" in rows
    assert "| unbiased | 0.30 | 0.30 |" in rows
    assert "| length | 0.45 * | 0.45 |" in rows
