"""Folders as people have them: what is taken, and that everything else is counted and named."""

import logging
import os

import pytest

from kappaface_dist.data.sources.base import list_images
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.folder import FolderSource
from tests.unit.data.made_records import jpeg


def put(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number, 16))
    return root


def files(source, root):
    return [os.path.relpath(source.where(i), root) for i in range(len(source.label_I))]


def test_a_persons_folder_is_walked_to_its_end(tmp_path):
    names = ["ann/1.jpg", "ann/2020/a.jpg", "ann/2020/may/b.JPG", "ben/old/only/1.jpeg"]
    root = put(tmp_path, *names)
    for _ in range(2):  # the second time from the cache
        source = FolderSource(root)
        assert files(source, root) == names
        assert source.label_I.tolist() == [0, 0, 0, 1]
        assert list(source.class_names) == ["ann", "ben"]
        assert source.read(2) == jpeg(2, 16)
        assert source.left_out.total == 0


@pytest.mark.parametrize(
    "suffix", ["jpg", "jfif", "jpe", "JPEG", "gif", "tif", "tiff", "pbm", "webp"]
)
def test_the_endings_that_pictures_have(tmp_path, suffix):
    root = put(tmp_path, f"ann/1.{suffix}", "ben/1.jpg")
    assert open_catalog(root).num_images == 2


def test_what_is_not_taken_is_counted_and_named(tmp_path, caplog):
    root = put(tmp_path, "ann/1.jpg", "ben/1.jpg", "ben/in/2.jpg", "loose.jpg", ".hidden/1.jpg")
    (root / "nobody" / "inside").mkdir(parents=True)
    (root / "ann" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "gone").symlink_to("nowhere")
    (root / "ann" / ".DS_Store").write_bytes(b"\0")
    (root / "ann" / "photo.heic").write_bytes(b"\0")
    (root / "ben" / "in" / "list.txt").write_text("1")
    (root / "ben" / "again").symlink_to(root / "ben")
    os.mkfifo(root / "ben" / "pipe.jpg")
    expected = {
        "loose.jpg": "in no identity's folder",
        ".hidden": "hidden",
        "nobody": "a folder without a photo",
        "ann/gone.jpg": "a link to nothing",
        "gone": "a link to nothing",
        "ann/.DS_Store": "hidden",
        "ann/photo.heic": "not an image by its name",
        "ben/in/list.txt": "not an image by its name",
        "ben/again": "a link to a folder that it lies in",
        "ben/pipe.jpg": "neither file nor folder",
    }
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            left_out = open_catalog(root).left_out
        found = {os.path.relpath(where, root): why for where, why in left_out.listed}
        assert found == expected
        assert left_out.total == 10
        assert left_out.counts["hidden"] == 2
        assert left_out.counts["a link to nothing"] == 2
        assert "in no identity's folder: 1" in caplog.text


def test_only_the_first_thousand_are_named_but_all_are_counted(tmp_path):
    root = put(tmp_path, "ann/1.jpg", "ben/1.jpg")
    for i in range(1100):
        (root / "ann" / f"{i}.txt").write_text("")
    left_out = open_catalog(root).left_out
    assert left_out.total == 1100
    assert len(left_out.listed) == 1000


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    put(tmp_path / "elsewhere", "a/1.jpg", "a/2.jpg")
    root = put(tmp_path / "photos", "ben/1.jpg")
    (root / "ann").symlink_to(tmp_path / "elsewhere" / "a")
    (root / "ben" / "more").symlink_to(tmp_path / "elsewhere")
    catalog = open_catalog(root)
    assert catalog.label_I.tolist() == [0, 0, 1, 1, 1]
    # Each leads into the other: no walk without an end.
    (tmp_path / "elsewhere" / "back").symlink_to(root / "ben")
    assert open_catalog(root).num_images == 5


def test_links_to_the_dataset_itself_are_none_of_its_people(tmp_path, monkeypatch):
    """Neither a person's photos nor a person: everybody would be in it, for a second time."""
    root = put(tmp_path / "photos", "ann/1.jpg", "ben/in/1.jpg")
    (root / "ann" / "all").symlink_to(root)
    (root / "ben" / "in" / "disk").symlink_to(tmp_path)
    (root / "latest").symlink_to(root)
    (tmp_path / "mine").symlink_to(root)
    monkeypatch.chdir(root)
    for name in (root, tmp_path / "mine", "."):
        catalog = open_catalog(name)
        assert list(catalog.class_names) == ["ann", "ben"]
        assert catalog.num_images == 2
        assert catalog.left_out.counts == {"a link to a folder that it lies in": 3}


@pytest.mark.parametrize("change", ["add", "remove", "deeper", "loose", "empty"])
def test_a_change_at_any_depth_is_noticed(tmp_path, change):
    root = put(tmp_path, "ann/1.jpg", "ann/2020/may/2.jpg", "ben/1.jpg")
    assert open_catalog(root).num_images == 3
    if change == "add":
        put(root, "ann/2020/may/3.jpg")
    elif change == "remove":
        (root / "ann/2020/may/2.jpg").unlink()
    elif change == "deeper":
        put(root, "ann/2020/may/june/3.jpg")
    elif change == "loose":
        put(root, "loose.jpg")
    else:
        (root / "nobody").mkdir()
    expected = {"add": 4, "remove": 2, "deeper": 4, "loose": 3, "empty": 3}
    catalog = open_catalog(root)
    assert catalog.num_images == expected[change]
    assert catalog.left_out.total == (change in ("loose", "empty"))


def test_names_that_are_no_unicode(tmp_path):
    root = put(tmp_path, "ann/1.jpg", "ben/1.jpg")
    for name in (b"caf\xe9.jpg", b"caf\xe9.txt"):
        with open(os.fsencode(root / "ann") + b"/" + name, "wb") as file:
            file.write(jpeg(1, 16))
    for _ in range(2):
        catalog = open_catalog(root)
        assert catalog.read(1) == jpeg(1, 16)
        assert catalog.left_out.total == 1


def test_images_and_all_else_of_one_folder(tmp_path):
    root = put(tmp_path, "b.jpg", "a/c.png", "a/notes.txt")
    assert list_images(root) == (
        ["a/c.png", "b.jpg"],
        [("a/notes.txt", "not an image by its name")],
    )
