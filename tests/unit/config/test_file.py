"""The configuration: layers, overrides, and what a user's slip is answered with."""

import re

import pytest

from kappaface_dist.config.file import load_config, to_yaml

MINIMAL = "run: {epochs: 2}\ndata: {train: x.rec}\n"


@pytest.fixture
def write(tmp_path):
    def _write(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return _write


def test_later_layers_win(write):
    write(MINIMAL + "optimizer: {lr: 0.3, momentum: 0.8}\n", "base.yaml")
    path = write("extends: base.yaml\noptimizer: {lr: 0.2}\n")
    config = load_config(path, ["optimizer.weight_decay=1e-4", "evaluate.sets.lfw=lfw.bin"])
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.2, 0.8)
    assert config.optimizer.weight_decay == 1e-4
    assert config.evaluate.sets == {"lfw": "lfw.bin"}
    assert config.optimizer.power == 2.0


def test_sets_add_up_until_none_is_wanted(write):
    write(MINIMAL + "evaluate: {sets: {lfw: lfw.bin}}\n", "base.yaml")
    path = write("extends: base.yaml\nevaluate: {sets: {own: own.bin}}\n")
    assert load_config(path).evaluate.sets == {"lfw": "lfw.bin", "own": "own.bin"}
    assert load_config(path, ["evaluate.sets={}"]).evaluate.sets == {}
    path = write("extends: base.yaml\nevaluate: {sets: {}}\n")
    assert load_config(path, ["evaluate.sets.own=own.bin"]).evaluate.sets == {"own": "own.bin"}


def test_a_named_margin_starts_anew(write):
    path = write(MINIMAL + "margin: {name: kappaface, temperature: 0.3}\n")
    assert load_config(path).margin["temperature"] == 0.3
    assert load_config(path, ["margin.temperature=0.5"]).margin["name"] == "kappaface"
    assert load_config(path, ["margin.name=arcface"]).margin == {"name": "arcface"}


def test_steps_replace_epochs(write):
    config = load_config(write(MINIMAL), ["run.steps=7"])
    assert (config.run.steps, config.run.epochs) == (7, None)


def test_what_is_written_reads_back(write):
    config = load_config(write(MINIMAL + "margin: {name: cosface, margin: 0.4}\n"))
    assert load_config(write(to_yaml(config), "copy.yaml")) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=3", "unknown key optimizer.lrr: did you mean optimizer.lr?"),
        ("optimiser.lr=3", "unknown key optimiser: did you mean optimizer?"),
        ("optimizer.lr=abc", "optimizer.lr: Value 'abc'"),
        ("data=3", "data is 3: it is a section of keys"),
        ("nonsense", "'nonsense' is not of the form key=value"),
        ("data.batch_size=0", "data.batch_size is 0: it must be at least 1"),
        ("precision=bf17", "precision is 'bf17': choose one of bf16, fp16, fp32"),
        ("optimizer.warmup_epochs=2", "the run has only 2.0 epochs"),
        ("evaluate.every=10", "evaluate.sets is empty"),
        ("data.train=null", "data.train is not set"),
        ("data.max_corrupt_share=1.5", "it is a share, 0 to 1"),
        ("head.momentum_dtype=fp16", "choose one of fp32, bf16"),
        ("optimizer.lr=-1", "optimizer.lr is -1.0: it must be above 0"),
        ("profile.steps=[3,3]", "profile.steps is [3, 3]: give [first, last]"),
        ("optimizer.accumulate=0", "optimizer.accumulate is 0: it must be at least 1"),
        ("optimizer.cache_embeddings=true", "there is nothing to cache"),
        ("backbone.gradient_dtype=fp16", "choose one of fp32, bf16"),
        ("backbone.compile=fast", "choose one of true, false, reduce-overhead, max-autotune"),
        ("backbone.bucket_megabytes=0", "backbone.bucket_megabytes is 0.0: it must be above 0"),
    ],
)
def test_slips(write, override, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(write(MINIMAL), [override])
    assert "\n" not in str(caught.value)


def test_epochs_and_steps_together(write):
    with pytest.raises(ValueError, match="set exactly one"):
        load_config(write("run: {epochs: 1, steps: 1}\ndata: {train: x}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n", "it must map sections"),
        ("extends: config.yaml", "itself"),
    ],
)
def test_broken_files(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(text))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"config .*nope\.yaml cannot be read"):
        load_config(tmp_path / "nope.yaml")


def test_a_state_that_only_sgd_has(write):
    path = write(MINIMAL)
    assert load_config(path, ["head.momentum_dtype=bf16"]).head.momentum_dtype == "bf16"
    with pytest.raises(ValueError, match="whose state stays fp32"):
        load_config(path, ["head.momentum_dtype=bf16", "optimizer.name=adamw"])


def test_what_ddp_cannot_do(write):
    overrides = ["backbone.static_graph=true", "optimizer.accumulate=2"]
    with pytest.raises(ValueError, match="DDP cannot do both"):
        load_config(write(MINIMAL), overrides)


def test_a_configuration_that_carries_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    for tag in ("object/apply", "object/new"):
        (tmp_path / "bad.yaml").write_text(
            f"run:\n  name: !!python/{tag}:os.system ['touch {mark}']\n  steps: 3\n"
        )
        with pytest.raises(ValueError, match="is not valid YAML: could not determine a construct"):
            load_config(tmp_path / "bad.yaml")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint.best=accuracy/lfw", "evaluate.sets gives nothing to choose by"),
        ("run.timeout_minutes=0", "must be above 0"),
        ("run.stop_exit_code=256", "choose 0 to 255"),
        ("optimizer.name=lamb", "set optimizer.implementation=apex"),
        ("head.identity_map=map.tsv", r"head\.init, the earlier run, is not"),
        ("backbone.first_steps=-1", "neither can be below 0"),
    ],
)
def test_settings_of_long_runs_are_checked(tmp_path, override, message):
    (tmp_path / "config.yaml").write_text("run: {steps: 3}\ndata: {train: x.rec}\n")
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "config.yaml", [override])
