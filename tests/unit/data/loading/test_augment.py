"""Random changes: as often and as far as the preset says, in both decoders."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from kappaface_dist.config.checks import CHOICES
from kappaface_dist.data.loading import augment
from kappaface_dist.data.loading.augment import PRESETS, Preset, draw_changes
from kappaface_dist.data.loading.augment_cpu import apply_changes
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources.catalog import open_catalog
from tests.unit.data.loading.loaders import ARGUMENTS, each_dali_loader
from tests.unit.data.made_records import jpeg, write_records

NUM = 4000
SIZE = 56
ONLY = ("crop", "window", "photometric", "grey", "occlusion", "blur", "low_resolution", "jpeg")


@pytest.fixture
def only(monkeypatch):
    """Presets with one change, always made."""
    for name in ONLY:
        monkeypatch.setitem(PRESETS, name, Preset(flip=0.0, **{name: 1.0}))
    monkeypatch.setitem(CHOICES, "data.augment", tuple(PRESETS))


def picture(seed):
    return np.asarray(Image.open(io.BytesIO(jpeg(seed, SIZE))).convert("RGB"))


def test_the_configuration_knows_the_presets():
    assert CHOICES["data.augment"] == tuple(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_chances_and_ranges(name):
    preset, changes = PRESETS[name], draw_changes(name, 5, np.arange(NUM))
    happened = {
        "flip": changes.flip_B,
        "crop": (changes.crop_B4 != augment.WHOLE).any(1),
        "window": (changes.window_B4 != augment.WHOLE).any(1),
        "occlusion": changes.occlusion_B4[:, 2] > 0,
        "blur": changes.sigma_B > 0,
        "low_resolution": changes.side_B < 1,
        "jpeg": changes.quality_B > 0,
    }
    for change, hit_B in happened.items():
        chance = getattr(preset, change)
        # Five standard deviations of a binomial; none at all where the chance is 0.
        assert abs(hit_B.mean() - chance) <= 5 * np.sqrt(chance * (1 - chance) / NUM), change
    for box_B4, (low, high) in (
        (changes.crop_B4[happened["crop"]], preset.crop_area),
        (changes.window_B4[happened["window"]], preset.window_area),
        (changes.occlusion_B4[happened["occlusion"]], preset.occlusion_area),
    ):
        assert ((box_B4 >= 0) & (box_B4 <= 1)).all()
        area = (box_B4[:, 2] - box_B4[:, 0]) * (box_B4[:, 3] - box_B4[:, 1])
        # A box of nearly all the area and 4:3 loses what would stick out.
        assert ((area > low * 0.85 - 1e-6) & (area < high + 1e-6)).all()


def test_different_changes_are_independent():
    changes = draw_changes("strong", 5, np.arange(NUM))
    flags = np.stack(
        [changes.flip_B, changes.sigma_B > 0, changes.side_B < 1, changes.quality_B > 0]
    )
    off_diagonal = np.corrcoef(flags)[np.triu_indices(4, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(NUM)


def test_changes_depend_on_the_position_alone():
    whole = draw_changes("strong", 5, np.arange(1000, 1100))
    part = draw_changes("strong", 5, np.arange(1040, 1050))
    for name, expected in vars(whole.part(40, 50)).items():
        np.testing.assert_array_equal(getattr(part, name), expected, err_msg=name)
    other = draw_changes("strong", 6, np.arange(1000, 1100))
    assert (other.flip_B != whole.flip_B).any()


@pytest.mark.usefixtures("only")
def test_each_change_is_what_it_says():
    positions = np.arange(40)
    for i in range(40):
        original = picture(i)
        image = Image.fromarray(original)

        def changed(name, original=original, i=i):
            changes = draw_changes(name, 2, positions)
            return apply_changes(original, changes, i).astype(int), changes

        found, changes = changed("grey")
        assert np.abs(found - np.asarray(image.convert("L"))[:, :, None]).max() <= 1
        found, changes = changed("window")
        left, top, right, bottom = np.round(changes.window_B4[i] * SIZE).astype(int)
        inside = np.zeros((SIZE, SIZE, 1), dtype=bool)
        inside[top:bottom, left:right] = True
        assert (found == np.where(inside, original, 0)).all()
        found, changes = changed("occlusion")
        left, top, right, bottom = np.round(changes.occlusion_B4[i] * SIZE).astype(int)
        inside[:] = False
        inside[top:bottom, left:right] = True
        assert (found == np.where(inside, changes.occlusion_colour_B3[i].round(), original)).all()
        found, changes = changed("photometric")
        offset = changes.colour_B34[i, :, 3]
        oracle = original @ changes.colour_B34[i, :, :3].T.astype(float) + offset
        assert np.abs(found - np.clip(oracle, 0, 255)).max() <= 1
        found, changes = changed("blur")
        spread = float(changes.sigma_B[i]) * SIZE
        oracle = gaussian_filter(original.astype(float), (spread, spread, 0), mode="nearest")
        # Pillow's three box filters are an approximation.
        assert np.abs(found - oracle).mean() < 1.5
        assert np.abs(found - original).mean() > 0.1
        found, changes = changed("jpeg")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(changes.quality_B[i]), subsampling=2)
        assert np.abs(found - np.asarray(Image.open(buffer))).mean() < 3.0
        for name in ("crop", "low_resolution"):
            found, changes = changed(name)
            assert found.shape == original.shape
            assert np.abs(found - original).mean() > 0.05, name


def test_brightness_contrast_saturation():
    on, off = np.array([True]), np.array([False])

    def matrix(**factors):
        values = {"brightness_B": 1, "contrast_B": 1, "saturation_B": 1} | factors
        arrays = {name: np.float32([value]) for name, value in values.items()}
        return augment.colour_matrices(on, off, **arrays)[0]

    pixel = np.float64([200, 100, 20, 1])
    grey = np.dot(pixel[:3], augment.LUMA)
    np.testing.assert_allclose(matrix(brightness_B=1.2) @ pixel, pixel[:3] * 1.2, rtol=1e-5)
    contrast = 127.5 + 0.5 * (pixel[:3] - 127.5)
    np.testing.assert_allclose(matrix(contrast_B=0.5) @ pixel, contrast, rtol=1e-5)
    saturation = grey + 1.5 * (pixel[:3] - grey)
    np.testing.assert_allclose(matrix(saturation_B=1.5) @ pixel, saturation, rtol=1e-5)


# By how many levels of 255 an image may differ on average: half of the images, and the worst one;
# the docstring of augment.py says why. What is made of whole pixels is equal. "nearest" may take
# the next pixel, which shows at the hard edges of these pictures.
TOLERANCE = {
    "crop": (0.3, 0.5),
    "blur": (1.0, 2.0),
    "low_resolution": (1.0, 25.0),
    "jpeg": (2.0, 5.0),
    "adaface": (0.5, 10.0),
    "strong": (0.5, 10.0),
}


@each_dali_loader
@pytest.mark.parametrize("name", [*ONLY, "adaface", "strong"])
@pytest.mark.usefixtures("only")
def test_loaders_make_the_same_changes(tmp_path, name, loader):
    catalog = open_catalog(write_records(tmp_path / "train.rec", list(range(24)), SIZE))
    cpu, dali = (
        torch.cat(
            [
                batch.image_B3HW
                for batch in build_loader(
                    catalog,
                    **ARGUMENTS[one],
                    batch_size=24,
                    image_size=SIZE,
                    augment=name,
                    num_threads=2,
                    seed=4,
                    device=torch.device("cpu"),
                ).batches(0, 2)
            ]
        )
        for one in ("cpu", loader)
    )
    off_B = (cpu - dali).abs().mean((1, 2, 3)) * 127.5
    half, worst = TOLERANCE.get(name, (1e-4, 1e-4))
    assert off_B.median() <= half
    assert off_B.max() <= worst
