"""The list files of template benchmarks: what they say, and what is wrong with broken ones."""

import numpy as np
import pytest

from kappaface_dist.data.align import REFERENCE_52, similarity
from kappaface_dist.data.images import decode_picture
from kappaface_dist.evaluation.sets.template_lists import read_template_set
from kappaface_dist.made_up_faces.templates import write_template_set


@pytest.fixture
def lists(tmp_path):
    """Lists as the official ones look, with two rows for a template in the CSV."""
    meta = tmp_path / "meta"
    meta.mkdir()
    files = {
        "ijbb_face_tid_mid.txt": "1.jpg 11 500\n2.jpg 11 501\n3.jpg 12 500\n4.jpg 13 7\n",
        "ijbb_name_5pts_score.txt": "".join(
            f"{i}.jpg {' '.join(str(10 * k + i) for k in range(10))} 0.{i}\n" for i in range(1, 5)
        ),
        "ijbb_template_pair_label.txt": "11 12 1\n11 13 0\n",
        "ijbb_1N_gallery_S1.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n11,900,a.jpg\n11,900,b.jpg\n",
        "ijbb_1N_gallery_S2.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n13,901,c.jpg\n",
        "ijbb_1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n12,900,frames/d.jpg\n",
    }
    for name, text in files.items():
        (meta / name).write_text(text)
    return tmp_path


def test_lists_are_read(lists):
    found = read_template_set(lists)
    assert found.name == "ijbb"
    assert found.image_names == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert found.template_I.tolist() == [11, 11, 12, 13]
    assert found.media_I.tolist() == [500, 501, 500, 7]
    assert found.points_I52[1].tolist() == [[2, 12], [22, 32], [42, 52], [62, 72], [82, 92]]
    np.testing.assert_allclose(found.score_I, [0.1, 0.2, 0.3, 0.4])
    assert found.pair_P2.tolist() == [[11, 12], [11, 13]]
    assert found.same_P.tolist() == [True, False]
    assert found.galleries["S1"].template_T.tolist() == [11]
    assert found.galleries["S2"].subject_T.tolist() == [901]
    assert found.probes.template_T.tolist() == [12]


def test_without_the_lists_of_1_to_n(lists):
    for path in (lists / "meta").glob("*.csv"):
        path.unlink()
    found = read_template_set(lists)
    assert (found.galleries, found.probes) == ({}, None)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("face_tid_mid.txt", "1.jpg 11\n", "line 1 is '1.jpg 11', expected a name and 2 numbers"),
        ("name_5pts_score.txt", "1.jpg 1 2 3\n", "expected a name and 11 numbers"),
        ("face_tid_mid.txt", "1.jpg 11 1\n2.jpg 12 1\n9.jpg 13 1\n", "different images at line 3"),
        ("face_tid_mid.txt", "1.jpg 11 1\n2.jpg 12 1\n", "different images at line 3"),
        ("template_pair_label.txt", "11 12\n", "expected three columns"),
        ("template_pair_label.txt", "11 12 x\n", "not three whole numbers a line"),
        ("template_pair_label.txt", "11 12 2\n", "labels other than 0 and 1"),
        ("template_pair_label.txt", "11 99 1\n", "names 1 templates without an image"),
        ("1N_gallery_S1.csv", "T,S\n11,900\n11,901\n", "gives template 11 the subject 901"),
        ("1N_gallery_S1.csv", "T,S\nx,900\n", "line 2 does not begin with TEMPLATE_ID"),
        ("1N_gallery_S1.csv", "T,S\n", "lists no template"),
        ("1N_probe_mixed.csv", "T,S\n77,900\n", "the first is 77"),
        ("name_5pts_score.txt", None, "there is no file"),
        ("1N_probe_mixed.csv", None, "1:N galleries but no ijbb_1N_probe_mixed.csv"),
    ],
)
def test_broken_lists_are_named(lists, file, text, message):
    path = lists / "meta" / f"ijbb_{file}"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_template_set(lists)


def test_a_folder_without_lists_is_named(tmp_path):
    with pytest.raises(ValueError, match="has 0 files"):
        read_template_set(tmp_path)


def test_the_made_set_is_one(tmp_path):
    report = write_template_set(tmp_path, name="ijbx", num_identities=4, seed=3)
    found = read_template_set(tmp_path)
    assert report == {"images": 44, "templates": 12, "pairs": 32, "people": 4}
    assert len(found.image_names) == 44
    assert found.same_P.sum() == 8
    people = [set(each.subject_T.tolist()) for each in found.galleries.values()]
    assert people == [{1, 3}, {2, 4}]
    assert set(found.probes.subject_T.tolist()) == {1, 2, 3, 4}
    # Videos: media with several images, and templates of several media.
    _, frames = np.unique(found.media_I, return_counts=True)
    assert sorted(set(frames.tolist())) == [1, 2, 3]
    for name, points in zip(found.image_names[:3], found.points_I52, strict=False):
        pixels = decode_picture((found.folder / name).read_bytes())
        assert pixels.shape == (160, 160, 3)
        matrix = similarity(points, REFERENCE_52)
        placed = points @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(placed - REFERENCE_52).max() < 0.01
    with pytest.raises(ValueError, match="3 people are too few"):
        write_template_set(tmp_path, name="ijbx", num_identities=3, seed=3)


def test_marks_and_blank_last_lines(lists):
    """What Windows editors add to a list changes nothing but its digest."""
    plain = read_template_set(lists)
    for path in (lists / "meta").iterdir():
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    marked = read_template_set(lists)
    assert marked.image_names == plain.image_names
    for name in ("template_I", "media_I", "points_I52", "pair_P2", "same_P"):
        assert (getattr(marked, name) == getattr(plain, name)).all()
    assert marked.galleries.keys() == plain.galleries.keys()
    assert (marked.probes.subject_T == plain.probes.subject_T).all()
