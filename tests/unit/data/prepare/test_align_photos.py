"""Photos as they come: large ones, several faces, none, and a detector of another kind."""

import json

import numpy as np
import pytest
from PIL import Image

from kappaface_dist.data.align import REFERENCE_52
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.prepare.align_photos import align_photos, detected_photos, listed_photos
from kappaface_dist.data.prepare.landmarks import Face, YuNetDetector, choose
from tests.commands import python

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")


@pytest.fixture(scope="module")
def yunet(shared_data):
    path = shared_data / "models" / "face_detection_yunet_2026may.onnx"
    if not path.is_file():
        pytest.skip(f"the face detector's model is absent: {path}")
    return path


@pytest.fixture(scope="module")
def people(shared_data):
    """Photos of ORL, 92 x 112 pixels each of one face."""
    files = [shared_data / "orl" / f"s{s}" / "1.pgm" for s in (1, 4, 10, 25)]
    return [decode_picture(path.read_bytes()) for path in files]


def magnified(pixels_HW3, factor):
    size = (pixels_HW3.shape[1] * factor, pixels_HW3.shape[0] * factor)
    return np.asarray(Image.fromarray(pixels_HW3).resize(size, Image.Resampling.BICUBIC))


def fit(source_52, target_52):
    """The similarity by plain least squares in its four parameters."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source_52, target_52, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        right += [u, v]
    a, b, shift_x, shift_y = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    return np.array([[a, -b, shift_x], [b, a, shift_y]])


def test_crops_are_those_of_opencv(yunet, people, tmp_path):
    """An independent fit and OpenCV's warp give the same crop, to within rounding."""
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(people):
        Image.fromarray(magnified(pixels, 3)).save(tmp_path / "photos" / f"{number}.png")
    found = detected_photos(tmp_path / "photos", yunet, "largest")
    aligned, left_out = align_photos(
        tmp_path / "photos", tmp_path / "out", found, image_size=112, fallback="skip"
    )
    assert (len(aligned), left_out) == (4, [])
    detector = cv2.FaceDetectorYN.create(str(yunet), "", (276, 336), 0.6)
    for each in aligned:
        bgr = cv2.imread(str(tmp_path / "photos" / each.name))
        points_52 = detector.detect(bgr)[1][0][4:14].reshape(5, 2)
        matrix_23 = fit(points_52.astype(np.float64), REFERENCE_52)
        expected = cv2.warpAffine(bgr, matrix_23, (112, 112), flags=cv2.INTER_LINEAR)[..., ::-1]
        white = np.full(bgr.shape[:2], 255, np.uint8)
        inside = cv2.warpAffine(white, matrix_23, (112, 112), flags=cv2.INTER_LINEAR)
        inside = cv2.erode((inside == 255).astype(np.uint8), np.ones((3, 3))) > 0
        crop = decode_picture(each.target.read_bytes())
        difference = np.abs(crop.astype(int) - expected.astype(int))[inside]
        # One level by rounding, and JPEG's loss at quality 95.
        assert difference.mean() < 1.5
        assert inside.mean() > 0.6


@pytest.mark.parametrize("factor", [20, 33])
def test_large_portraits_have_the_face_that_small_ones_have(yunet, people, factor):
    """At 3036 x 3696 pixels YuNet finds nothing in this photo, at 640 it does."""
    detector = YuNetDetector(yunet)
    (small,) = detector.faces(magnified(people[0], 5))
    (large,) = detector.faces(magnified(people[0], factor))
    eyes = np.linalg.norm(small.points_52[1] - small.points_52[0])
    shrunk_52 = (large.points_52 + 0.5) * 5 / factor - 0.5
    # YuNet's own spread between 560 and 640 pixels is 0.07; a part taken for a face is off by 0.3.
    assert np.abs(shrunk_52 - small.points_52).max() < 0.1 * eyes
    assert large.score > 0.8
    whole = cv2.FaceDetectorYN.create(str(yunet), "", (92 * factor, 112 * factor), 0.6)
    assert whole.detect(magnified(people[0], factor))[1] is None  # what a search in full finds


def test_a_small_face_in_a_large_photo_is_found_larger(yunet, people):
    """Nothing is found at 640 pixels, where the face has 12 of them."""
    photo = np.full((2400, 2400, 3), 128, np.uint8)
    photo[1000:1112, 1700:1792] = people[0]
    (face,) = YuNetDetector(yunet).faces(photo)
    x, y = face.points_52.mean(axis=0)
    assert 1700 < x < 1792
    assert 1000 < y < 1112


def test_which_of_several_faces(yunet, people):
    """A bystander in front, nearer to the camera, and the person in the middle."""
    photo = np.full((500, 700, 3), 128, np.uint8)
    photo[194:306, 304:396] = people[1]
    photo[20:468, 0:276] = np.roll(magnified(people[0], 4), -92, axis=1)[:448, :276]
    faces = YuNetDetector(yunet).faces(photo)
    assert len(faces) == 2
    chosen = {how: choose(faces, how, 700, 500) for how in ("largest", "central", "best")}
    assert chosen["largest"].points_52[:, 0].max() < 276
    assert 304 < chosen["central"].points_52[:, 0].mean() < 396
    assert chosen["best"].score == max(face.score for face in faces)


def box(x, y, size, score):
    return Face((x - size / 2, y - size / 2, size, size), np.zeros((5, 2)), score)


def test_the_score_weighs_as_much_as_the_area():
    face, body, eye = box(70, 50, 40, 0.95), box(50, 60, 41, 0.61), box(55, 45, 8, 0.7)
    assert choose([body, eye, face], "largest", 100, 100) is face
    assert choose([eye, face], "central", 100, 100) is not None
    # An eye inside the face that is in the middle is not the face in the middle.
    middle, inside = box(52, 52, 60, 0.9), box(50, 40, 9, 0.65)
    assert choose([inside, middle], "central", 100, 100) is middle
    assert choose([inside, middle], "best", 100, 100) is middle


def scrfd_model(path):
    """Outputs of another detector: numbers as names, and no scores by stride."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    picture = onnx.helper.make_tensor_value_info("input.1", 1, (1, 3, 640, 640))
    node = onnx.helper.make_node("ReduceMax", ["input.1"], ["448"], axes=[1, 2, 3], keepdims=0)
    out = onnx.helper.make_tensor_value_info("448", 1, (1,))
    graph = onnx.helper.make_graph([node], "scrfd", [picture], [out])
    opset = [onnx.helper.make_opsetid("", 11)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def test_a_detector_of_another_kind_is_one_sentence(tmp_path):
    model = scrfd_model(tmp_path / "scrfd.onnx")
    (tmp_path / "photos").mkdir()
    done = python(
        "tools/align_faces.py", tmp_path / "photos", tmp_path / "out", "--detector", model
    )
    assert done.returncode == 1
    assert "is not a YuNet model: it has no output cls_8" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_tool_on_photos_as_they_come(yunet, people, tmp_path):
    """Two people, nobody, no photo, a photo twice under one name, and a file of another kind."""
    photos = tmp_path / "photos"
    (photos / "ann").mkdir(parents=True)
    Image.fromarray(magnified(people[0], 3)).save(photos / "ann" / "1.png")
    Image.fromarray(magnified(people[1], 3)).save(photos / "ann" / "1.jpg", quality=95)
    pair = np.concatenate([magnified(people[2], 2), magnified(people[3], 2)], axis=1)
    Image.fromarray(pair).save(photos / "two.png")
    wall = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(wall).save(photos / "wall.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 rubbish")
    (photos / "notes.txt").write_text("of the day")
    (photos / "ann" / "gone.jpg").symlink_to("nothing.jpg")
    (photos / "nobody").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(magnified(people[0], 3)).save(tmp_path / "elsewhere" / "1.png")
    (photos / "bob").symlink_to(tmp_path / "elsewhere")  # a person's folder on another disk
    done = python(
        "tools/align_faces.py", photos, tmp_path / "out", "--detector", yunet,
        "--fallback", "centre", "--choose", "central",
        "--sheet", tmp_path / "sheet.png", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["num_aligned"] == 4
    assert report["fallback"] == ["wall.png"]
    assert [each["photo"] for each in report["doubtful"]] == ["two.png"]
    assert "2 faces" in report["doubtful"][0]["doubts"]
    reasons = {item["photo"]: item["reason"] for item in report["left_out"]}
    assert reasons.pop("broken.jpg").startswith("not a readable image")
    assert reasons == {
        "notes.txt": "not an image by its name",
        "ann/gone.jpg": "a link to nothing",
        "nobody": "a folder without a photo",
    }
    assert "WARN" not in done.stderr  # of OpenCV, which no one can act on
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.glob("out/**/*.jpg"))
    assert names == ["ann/1.jpg", "ann/1.png.jpg", "bob/1.jpg", "two.jpg", "wall.jpg"]
    # The middle of the wall, by Pillow alone.
    middle = Image.fromarray(wall[:, 40:160]).resize((112, 112), Image.Resampling.BILINEAR)
    crop = decode_picture((tmp_path / "out" / "wall.jpg").read_bytes())
    assert np.abs(crop.astype(int) - np.asarray(middle)).mean() < 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        first = np.asarray(sheet.convert("RGB"))[2:114, 12:124]
        assert sheet.size[0] == 5 * 136
    assert np.abs(first.astype(int) - crop).mean() < 1  # the most doubtful one comes first


def test_skipping_leaves_out_what_has_no_face(yunet, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (200, 120), "grey").save(tmp_path / "photos" / "wall.png")
    found = detected_photos(tmp_path / "photos", yunet, "largest")
    aligned, left_out = align_photos(
        tmp_path / "photos", tmp_path / "out", found, image_size=112, fallback="skip"
    )
    assert (aligned, left_out) == ([], [("wall.png", "no face was found")])
    assert not list(tmp_path.glob("out/**/*.jpg"))


def test_listed_photos_stay_in_their_folder(tmp_path):
    """Absolute names would have overwritten the photos; unlisted photos are named."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b, c.png", "d.png"):
        Image.new("RGB", (112, 112), "red").save(photos / name)
    Image.new("RGB", (112, 112)).save(tmp_path / "other.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    points = " ".join(f"{value:.3f}" for value in REFERENCE_52.ravel())
    names = [f"{photos}/a.png", "b, c.png", f"{tmp_path}/other.png", "../other.png", "a.png"]
    lines = "".join(f"{name} {points}\r\n" for name in names)
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    found = listed_photos(photos, tmp_path / "l.txt")
    aligned, left_out = align_photos(
        photos, tmp_path / "out", found, image_size=112, fallback="skip"
    )
    assert sorted(each.name for each in aligned) == ["a.png", "b, c.png"]
    reasons = dict(left_out)
    assert "does not lie in" in reasons["../other.png"]
    assert "does not lie in" in reasons[f"{tmp_path}/other.png"]
    assert "lists it twice" in reasons["a.png"]
    assert "has no points for it" in reasons["d.png"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    for out in (photos, photos / "aligned"):
        with pytest.raises(ValueError, match="results would be taken for photos"):
            align_photos(photos, out, found, image_size=112, fallback="skip")
