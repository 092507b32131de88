"""The section of several datasets: what it means, and what is wrong with it in one sentence."""

import pytest

from kappaface_dist.config.datasets import datasets, weights
from kappaface_dist.config.file import load_config, parse_config, to_yaml

TWO = """
run: {steps: 3, seed: 5}
data:
  batch_size: 10
  train:
    a: {path: a.rec, share: 0.7, margin: {margin: 0.3}}
    b: {path: [b.rec, c.rec], share: 0.3, weight: 2, margin: {name: cosface}, sample_rate: 0.1}
margin: {name: arcface, scale: 48, margin: 0.5}
head: {logit_cache_bytes: 1000, sample_rate: [[0, 0.5], [2, 1]]}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "config.yaml").write_text(TWO)
    return tmp_path / "config.yaml"


def test_each_dataset_has_a_configuration_of_its_own(path):
    config = load_config(path)
    a, b = datasets(config).values()
    assert list(datasets(config)) == ["a", "b"]
    assert (a.data.train, a.data.batch_size, b.data.train) == ("a.rec", 7, ["b.rec", "c.rec"])
    assert (a.data.batch_size, b.data.batch_size) == (7, 3)
    assert a.margin == {"name": "arcface", "scale": 48, "margin": 0.3}
    assert b.margin == {"name": "cosface", "scale": 48}  # arcface's margin is not cosface's
    assert (a.head.sample_rate_in(1), a.head.sample_rate_in(2), b.head.sample_rate) == (0.5, 1, 0.1)
    assert (a.head.logit_cache_bytes, b.head.logit_cache_bytes) == (700, 300)
    assert len({config.run.seed, a.run.seed, b.run.seed}) == 3
    assert weights(config) == [1.0, 2.0]
    assert parse_config(to_yaml(config), "again") == config


def test_one_dataset_is_the_configuration_itself(path):
    config = load_config(path, ["data.train=x.rec"])
    assert datasets(config) == {"": config}
    assert weights(config) == [1.0]


@pytest.mark.parametrize(
    ("batch_size", "shares", "expected"),
    [(128, (0.3, 0.7), [38, 90]), (3, (0.5, 0.5), [2, 1]), (100, (0.29, 0.71), [29, 71])],
)
def test_a_batch_has_whole_images_and_all_of_them(path, batch_size, shares, expected):
    given = [f"data.train.{name}.share={s}" for name, s in zip("ab", shares, strict=True)]
    owns = datasets(load_config(path, [*given, f"data.batch_size={batch_size}"])).values()
    assert [own.data.batch_size for own in owns] == expected


def test_a_later_file_changes_one_dataset(path):
    path.with_name("more.yaml").write_text(
        "extends: config.yaml\ndata: {train: {b: {share: 0.1}, c: {path: c.rec, share: 0.2}}}\n"
    )
    owns = datasets(load_config(path.with_name("more.yaml")))
    assert [own.data.batch_size for own in owns.values()] == [7, 1, 2]


def test_another_margin_of_a_dataset_drops_its_settings_and_says_so(path, caplog):
    more = ["data.train.a.margin.scale=30", "data.train.a.margin.margin=0.2"]
    path.with_name("more.yaml").write_text(
        "extends: config.yaml\ndata: {train: {a: {margin: {name: cosface}}}}\n"
    )
    own = datasets(load_config(path.with_name("more.yaml")))["a"]
    assert own.margin == {"name": "cosface", "scale": 48}
    # a's had no name of its own.
    assert (
        "data.train.a.margin.name is cosface instead of that of all, whose settings are"
        in caplog.text
    )
    assert datasets(load_config(path, more))["a"].margin["margin"] == 0.2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.train.a.share=0.6",
            "the shares of data.train add up to 0.9 (a 0.6, b 0.3), expected",
        ),
        ("data.train.a.share=null", "data.train.a.share is not set: say which part of a batch"),
        ("data.train.a.path=null", "data.train.a.path is not set: give a .rec file"),
        ("data.batch_size=1", "data.train.b.share is 0.3 of data.batch_size 1, which is no image"),
        ("data.train.a.weight=0", "data.train.a.weight is 0.0: it must be above 0"),
        (
            "data.train.a.shares=1",
            "unknown key data.train.a.shares: did you mean data.train.a.share",
        ),
        ("data.train.weight={path: x, share: 0.1}", "a dataset named weight, as a tensor of every"),
        ("data.train.1a={path: x, share: 0.1}", "a dataset named '1a': names are a letter"),
        ("head.init=runs/x", "head.init or head.identity_map is set, but data.train names several"),
        ("data.train.a.identity_map=x", "data.train.a: head.identity_map is set, but head.init"),
        (
            "data.train.b.sample_rate=[[1, 1]]",
            "data.train.b: head.sample_rate is [[1.0, 1.0]]: give",
        ),
        ("data.train={}", "data.train is not set"),
        ("run.accept_changes=[datatrain]", "run.accept_changes names 'datatrain': choose from"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(path, override, message):
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
