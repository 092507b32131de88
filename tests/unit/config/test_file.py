"""The configuration: layers, overrides, and what a user's slip is answered with."""

import re

import pytest
import yaml

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


def test_a_margin_of_the_same_name_keeps_its_settings_and_another_what_all_have(write, caplog):
    path = write(MINIMAL + "margin: {name: kappaface, temperature: 0.3, scale: 32}\n")
    same = load_config(path, ["margin.name=kappaface", "margin.margin=0.5"])
    assert same.margin == {"name": "kappaface", "temperature": 0.3, "scale": 32, "margin": 0.5}
    assert not caplog.text
    other = load_config(path, ["margin.margin=0.5", "margin.name=arcface"])
    assert other.margin == {"name": "arcface", "scale": 32, "margin": 0.5}
    assert "arcface instead of kappaface, whose settings are dropped: temperature" in caplog.text


def test_sets_of_the_command_line_replace_those_of_files_and_plus_adds(write):
    path = write(MINIMAL + "evaluate: {sets: {lfw: lfw.bin}}\n")
    assert load_config(path, ["evaluate.sets={own: o.bin}"]).evaluate.sets == {"own": "o.bin"}
    assert load_config(path, ["evaluate={sets: {own: o.bin}}"]).evaluate.sets == {"own": "o.bin"}
    both = {"lfw": "lfw.bin", "own": "o.bin"}
    assert load_config(path, ["+evaluate.sets={own: o.bin}"]).evaluate.sets == both
    assert load_config(path, ["evaluate.sets.own=o.bin"]).evaluate.sets == both
    one_by_one = ["evaluate.sets={}", "+evaluate.sets={a: a.bin}", "evaluate.sets.b=b.bin"]
    assert load_config(path, one_by_one).evaluate.sets == {"a": "a.bin", "b": "b.bin"}
    with pytest.raises(ValueError, match=r"only \+evaluate.sets"):
        load_config(path, ["+run.name=x"])


@pytest.mark.parametrize("name", ["0123", "1e5", "1:30", "off", "true", "1_000", "a b #2", "*x"])
def test_a_name_stays_what_was_written(write, name):
    path = write(MINIMAL)
    assert load_config(path, [f"run.name={name}"]).run.name == name
    quoted = write(f"run: {{epochs: 2, name: '{name}'}}\ndata: {{train: x.rec}}\n")
    config = load_config(quoted)
    assert config.run.name == name
    assert load_config(write(to_yaml(config), "copy.yaml")).run.name == name
    if name[0].isalnum() and "#" not in name:
        assert load_config(write(quoted.read_text().replace("'", ""))).run.name == name


@pytest.mark.parametrize("text", ["${oc.env:KAPPAFACE_SECRET}", "a/${run.name}", "x${"])
@pytest.mark.parametrize("key", ["run.name", "data.train", "evaluate.sets.own", "margin.estimator"])
def test_nothing_of_the_environment_gets_in(write, monkeypatch, text, key):
    monkeypatch.setenv("KAPPAFACE_SECRET", "hunter2")
    value: object = text
    for part in reversed(key.split(".")):
        value = {part: value}
    base = write(yaml.safe_dump(value), "base.yaml")
    path = write("extends: base.yaml\nrun: {epochs: 2}\n")
    for config, overrides in ((write(MINIMAL, "plain.yaml"), [f"{key}={text}"]), (path, [])):
        with pytest.raises(ValueError, match="nothing is filled in") as caught:
            load_config(config, overrides)
        assert "hunter2" not in str(caught.value)
    assert "${" in base.read_text()


@pytest.mark.parametrize("character", ["\n", "\x1b", "\x00", "\x7f", "\u202e", "\u2028", "\x85"])
@pytest.mark.parametrize("key", ["run.name", "run.folder", "data.train", "evaluate.sets"])
def test_no_name_can_forge_a_line(write, key, character):
    text = f"a{character}b"
    if key == "evaluate.sets":
        text = yaml.safe_dump({text: "x.bin"}, default_flow_style=True)
    with pytest.raises(ValueError, match=r"control character U\+") as caught:
        load_config(write(MINIMAL), [f"{key}={text}"])
    assert str(caught.value).isprintable()


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
        ("optimizer.lr=abc", "optimizer.lr is abc: it must be a number"),
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
    with pytest.raises(ValueError, match=r"none, but optimizer\.name is adamw"):
        load_config(path, ["head.momentum_dtype=none", "optimizer.name=adamw"])
    with pytest.raises(ValueError, match=r"row, but optimizer\.name is sgd"):
        load_config(path, ["head.second_moment=row"])


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
        ("run.stop_exit_code=256", "at least 0 and at most 255"),
        ("optimizer.name=lamb", "set optimizer.implementation=apex"),
        ("head.identity_map=map.tsv", r"head\.init, the earlier run, is not"),
        ("backbone.first_steps=-1", "it must be at least 0"),
    ],
)
def test_settings_of_long_runs_are_checked(tmp_path, override, message):
    (tmp_path / "config.yaml").write_text("run: {steps: 3}\ndata: {train: x.rec}\n")
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "config.yaml", [override])


SCHEDULE = "head.sample_rate=[[0, 0.1], [2, 0.5], [15, 1]]"


def test_a_schedule_of_sample_rates(write):
    head = load_config(write("run: {epochs: 20}\ndata: {train: x}\n"), [SCHEDULE]).head
    assert [head.sample_rate_in(epoch) for epoch in (0, 1, 2, 14, 15, 19)] == [
        *(0.1, 0.1, 0.5, 0.5, 1.0, 1.0)
    ]
    assert head.largest_sample_rate == 1.0
    alone = load_config(write(MINIMAL), ["head.sample_rate=0.3"]).head
    assert (alone.sample_rate_in(0), alone.sample_rate_in(99)) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("0", "head.sample_rate is 0.0: it must be above 0 and at most 1"),
        ("[[0, 0.1], [15, 1.5]]", "head.sample_rate is 1.5: it must be above 0 and at most 1"),
        ("[[0, 0]]", "head.sample_rate is 0.0: it must be above 0 and at most 1"),
        ("[]", "give a share, or [epoch, share] pairs with whole and rising epochs from 0 on"),
        ("[[1, 0.5]]", "give a share, or [epoch, share] pairs"),
        ("[[0, 0.5, 2]]", "give a share, or [epoch, share] pairs"),
        ("[[0, 0.5], [1.5, 1]]", "give a share, or [epoch, share] pairs"),
        ("[[0, 0.5], [3, 0.2], [3, 1]]", "give a share, or [epoch, share] pairs"),
        ("[0.1, 0.2]", "head.sample_rate is"),
        ("[[0, .nan]]", "head.sample_rate is"),
        ("[[0, 0.1], [.inf, 1]]", "head.sample_rate is inf: it must be a finite number"),
        ("[[0, 0.1], [20, 1]]", "from epoch 20 on, but the run has only 20 epochs"),
    ],
)
def test_slips_in_a_schedule(write, rates, message):
    path = write("run: {epochs: 20}\ndata: {train: x}\n")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(path, [f"head.sample_rate={rates}"])
    assert "\n" not in str(caught.value)
