"""What an export says of itself, read by other programs; and it is taken as a model."""

import hashlib
import json
import os
import stat

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open

from kappaface_dist.models.embedder import load_embedder
from kappaface_dist.models.export import BackboneSettings, save_backbone, weights_digest
from kappaface_dist.models.exported import METADATA_FILE, read_onnx, read_program
from kappaface_dist.models.metadata import learnt_facts
from kappaface_dist.models.onnx_export import export_onnx
from kappaface_dist.models.program_export import export_program
from kappaface_dist.models.saved_model import open_model
from tests.commands import python
from tests.unit.backbones.calibrated import calibrated_backbone

SETTINGS = BackboneSettings("tiny", 16, 32)
VERIFICATION = {
    "lfw": {"threshold_at_far": {"1e-1": 0.25, "1e-2": 0.5, "1e-3": None}},
    "cfp": {"threshold_at_far": {"1e-1": 0.375}},
    "few": {"threshold_at_far": {"1e-1": None}},
}


def write_all(folder, model, facts=None):
    save_backbone(folder / "backbone.safetensors", model, **vars(SETTINGS), facts=facts)
    export_onnx(folder / "backbone.onnx", model, SETTINGS, facts=facts)
    export_program(folder / "backbone.pt2", model, SETTINGS, facts=facts)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = calibrated_backbone("tiny", 16, 32)
    facts = learnt_facts(images=5000, identities=70, verification=VERIFICATION)
    write_all(folder, model, facts)
    return folder, model


def metadata_of(path):
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if path.suffix == ".pt2":
        extra = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra[METADATA_FILE])
    with safe_open(path, framework="np") as file:
        return file.metadata()


FILES = ("backbone.safetensors", "backbone.onnx", "backbone.pt2")


@pytest.mark.parametrize("name", FILES)
def test_metadata(exported, name):
    folder, model = exported
    found = metadata_of(folder / name)
    assert "None" not in found.values()
    assert "depths" not in found
    assert (found["name"], found["embedding_size"], found["image_size"]) == ("tiny", "16", "32")
    assert (found["colour_order"], found["mean"], found["std"]) == ("RGB", "127.5", "127.5")
    assert (found["training_images"], found["training_identities"]) == ("5000", "70")
    assert found["weights_sha256"] == weights_digest(model)
    thresholds = {"lfw": {"1e-1": 0.25, "1e-2": 0.5}, "cfp": {"1e-1": 0.375}}
    assert json.loads(found["thresholds"]) == thresholds
    # ArcFace's template, from the corner of a pixel at 112 to the centre of one at 32.
    nose = (np.array([56.0252, 71.7366]) + 0.5) * 32 / 112 - 0.5
    np.testing.assert_allclose(json.loads(found["alignment_points"])[2], nose, atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_others_may_read_it(exported, name):
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE((exported[0] / name).stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", FILES)
def test_it_is_taken_as_a_model(exported, name):
    folder, model = exported
    opened = open_model(folder / name)
    assert opened.digest == weights_digest(model)
    assert opened.settings == SETTINGS
    content = (folder / name).read_bytes()
    own = hashlib.sha256(content).hexdigest() if name != FILES[0] else opened.digest
    assert opened.embeds_as == own
    image = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            opened.network(2 * image - 1), model(2 * image - 1), atol=1e-5, rtol=1e-5
        )
    embedder = load_embedder(folder / name)
    assert embedder.threshold(1e-2) == 0.5
    assert embedder.threshold(1e-1) == 0.375  # the strictest of two sets
    assert embedder.threshold(1e-1, "lfw") == 0.25
    for far, of in ((1e-3, None), (2e-1, None), (1e-2, "cfp")):
        with pytest.raises(ValueError, match="there is no threshold for FAR"):
            embedder.threshold(far, of)


def test_a_folder_of_exports_is_a_model(exported, tmp_path):
    assert open_model(exported[0]).path.name == "backbone.safetensors"
    (tmp_path / "backbone.pt2").write_bytes((exported[0] / "backbone.pt2").read_bytes())
    assert open_model(tmp_path).path.name == "backbone.pt2"


def test_no_file_names_a_folder_of_this_machine(exported):
    for name in FILES:
        content = (exported[0] / name).read_bytes()
        for place in (os.getcwd(), os.path.dirname(torch.__file__), "site-packages"):
            assert place.encode() not in content, name


@pytest.mark.long
def test_files_are_equal_from_run_to_run(exported, tmp_path):
    """In another process, whose hashes of strings have another seed."""
    folder, _ = exported
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.models.test_exported import *\n"
        "facts = learnt_facts(images=5000, identities=70, verification=VERIFICATION)\n"
        "write_all(Path(sys.argv[1]), calibrated_backbone('tiny', 16, 32), facts)\n"
    )
    ended = python("-c", program, tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize(("name", "read"), [("x.onnx", read_onnx), ("x.pt2", read_program)])
def test_what_is_no_export_is_named(tmp_path, name, read):
    with pytest.raises(FileNotFoundError, match="is not a file, expected an exported"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"{name} is not a readable"):
        read(tmp_path / name)


def test_a_model_of_others_is_named(exported, tmp_path):
    stranger = onnx.load(exported[0] / "backbone.onnx")
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"no usable 'name' in its metadata, expected a model of"):
        open_model(tmp_path / "x.onnx")


def test_exports_of_earlier_versions_say_none(exported, tmp_path):
    """depths and widths as text, as they were written before."""
    old = onnx.load(exported[0] / "backbone.onnx")
    for key in ("depths", "widths"):
        entry = old.metadata_props.add()
        entry.key, entry.value = key, "None"
    onnx.save(old, tmp_path / "x.onnx")
    assert open_model(tmp_path / "x.onnx").settings == SETTINGS


@pytest.mark.parametrize("opset", [0, 11, 13, 17, 99])
def test_an_opset_that_cannot_be_written_is_refused(exported, tmp_path, opset):
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ValueError, match=f"the opset is {opset}, expected 18 to {newest}"):
        export_onnx(tmp_path / "x.onnx", exported[1], SETTINGS, opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_opset_is_the_files_own(exported, tmp_path):
    for opset in (20, 23):
        found = export_onnx(tmp_path / "x.onnx", exported[1], SETTINGS, opset=opset)
        stored = onnx.load(tmp_path / "x.onnx").opset_import
        assert [entry.version for entry in stored if entry.domain == ""] == [opset] == [found.opset]
