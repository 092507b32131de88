"""Verification sets: pickles that others wrote, our own, and hostile ones."""

import contextlib
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest

from kappaface_dist.data.images import decode_image
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs, write_pairs

PAYLOADS = [b"one", b"two", b"three", b"four"]
SAME = [True, False]


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("protocol", range(6))
def test_reads_numpy_payloads_as_numpy_itself_pickles_them(tmp_path, protocol, shape):
    arrays = [np.frombuffer(payload, np.uint8).reshape(shape) for payload in PAYLOADS]
    pairs = read_pairs(write(tmp_path / "a.bin", (arrays, SAME), protocol))
    assert pairs.payloads == PAYLOADS
    assert pairs.same_P.tolist() == SAME
    assert pairs.same_P.dtype == bool
    assert pairs.num_pairs == 2


FLAGS = {
    "list of np.bool_": list(np.array(SAME)),
    "bool array": np.array(SAME),
    "int64 array": np.array(SAME).astype(np.int64),
    "int32 array, big-endian": np.array(SAME).astype(">i4"),
    "uint8 array": np.array(SAME).astype(np.uint8),
    "float32 array": np.array(SAME).astype(np.float32),
    "float64 array, a column": np.array(SAME).astype(np.float64)[:, None],
    "floats": [1.0, 0.0],
    "np.float64": list(np.array([1.0, 0.0])),
    "np.int64": list(np.array([1, 0])),
    "tuple": (1, 0),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_flags_in_every_type(tmp_path, flags, protocol):
    pairs = read_pairs(write(tmp_path / "a.bin", (PAYLOADS, flags), protocol))
    assert pairs.same_P.tolist() == SAME
    assert pairs.same_P.dtype == bool
    assert pairs.payloads == PAYLOADS


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda p: np.frombuffer(p, np.uint8).copy()])
def test_images_in_every_type(tmp_path, kind, protocol):
    payloads = [bytes(range(256)), b"\x00\xff\x80", b"plain", "zoë".encode()]
    pairs = read_pairs(write(tmp_path / "a.bin", ([kind(p) for p in payloads], SAME), protocol))
    assert pairs.payloads == payloads
    assert {type(payload) for payload in pairs.payloads} == {bytes}


FORMS = ["plain", "flags_numpy_list", "flags_numpy_array", "flags_int_array", "flags_float"]
FORMS += ["bytearrays", "protocol0", "protocol2", "protocol5"]


@pytest.mark.parametrize("name", FORMS)
def test_the_pair_files_of_the_cases(shared_cases, name):
    place = shared_cases / "pair_files"
    pairs = read_pairs(place / f"{name}.bin")
    # Made here from photos: the plain unpickler is the oracle.
    images, flags = pickle.loads((place / "plain.bin").read_bytes())  # noqa: S301
    assert (pairs.payloads, pairs.same_P.tolist()) == (images, flags)
    assert (pairs.num_pairs, pairs.same_P.sum()) == (40, 20)


def test_reads_the_str_payloads_of_python_2(tmp_path):
    # PROTO 2, a tuple of a list of SHORT_BINSTRING (Python 2's str) and a list of bools.
    strings = b"".join(b"U" + struct.pack("B", len(p)) + p for p in [b"\xff\xd8a", b"\xff\xd8b"])
    path = tmp_path / "py2.bin"
    path.write_bytes(b"\x80\x02](" + strings + b"e](\x89e\x86.")
    pairs = read_pairs(path)
    assert pairs.payloads == [b"\xff\xd8a", b"\xff\xd8b"]
    assert pairs.same_P.tolist() == [False]


def test_reads_the_real_set(shared_data):
    path = shared_data / "verification" / "small_lfw.bin"
    pairs = read_pairs(path)
    # Our own file of the folder of real data: the plain unpickler is the oracle.
    images, flags = pickle.loads(path.read_bytes())  # noqa: S301
    assert pairs.payloads == [image.tobytes() for image in images]
    assert pairs.same_P.tolist() == flags
    assert len(set(pairs.payloads)) == 17
    assert all(decode_image(payload, 112).shape == (112, 112, 3) for payload in pairs.payloads)


def test_the_fields_reader_loads_what_we_write(tmp_path):
    path = tmp_path / "new" / "set.bin"
    write_pairs(path, PAYLOADS, np.array(SAME))
    with path.open("rb") as file:
        images, flags = pickle.load(file, encoding="bytes")  # noqa: S301
    assert (images, flags) == (PAYLOADS, SAME)
    assert [type(flag) for flag in flags] == [bool, bool]
    names = {op.name for op, _, _ in pickletools.genops(path.read_bytes())}
    assert not names & {"GLOBAL", "STACK_GLOBAL", "REDUCE"}
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"]


def test_round_trip_stores_a_repeated_image_once(tmp_path):
    path = tmp_path / "set.bin"
    image = bytes(range(256)) * 40
    write_pairs(path, [image] * 20, [True] * 10)
    assert path.stat().st_size < 2 * len(image)
    pairs = read_pairs(path)
    assert isinstance(pairs, PairFile)
    assert pairs.payloads == [image] * 20
    assert all(payload is pairs.payloads[0] for payload in pairs.payloads)


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "hostile",
    [
        lambda marker: Calls(os.system, f"touch {marker}"),
        lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Calls(np.save, f"{marker}.npy", 1),
        lambda marker: Calls(getattr, "text", "upper"),
    ],
)
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path, hostile, protocol):
    content = ([hostile(tmp_path / "marker"), "x"], [True])
    path = write(tmp_path / "hostile.bin", content, protocol)
    with pytest.raises(ValueError, match=r"hostile\.bin is refused: .* could run code"):
        read_pairs(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_stand_ins_cannot_be_changed_or_misused(tmp_path):
    path = tmp_path / "hostile.bin"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    dtype = b"cnumpy\ndtype\n"
    for program in (
        reconstruct + b"}b.",  # set the state of the function
        b"(cnumpy\nndarray\nK\x01o.",  # construct ndarray directly
        dtype + b"(X\x01\x00\x00\x00OK\x00K\x01tR.",  # an object array
        dtype + b"(X\x02\x00\x00\x00u1tR(K\x03X\x01\x00\x00\x00|N](K\x01etb.",  # fields
        b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",  # two gigabytes of nothing
        b"cbuiltins\nbytes\n}b.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00rottR.",
        b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"(X\x01\x00\x00\x00OtR](tR.",
        reconstruct + b"(tR(K\x01(K\x63t" + dtype + b"(X\x02\x00\x00\x00u1tR\x89C\x01atb.",  # shape
    ):
        path.write_bytes(b"\x80\x03" + program)
        with pytest.raises(ValueError, match="is refused"):
            read_pairs(path)


@pytest.mark.parametrize("opcode", ["BYTEARRAY8", "BINBYTES8", "BINUNICODE8", "FRAME", "LONG4"])
def test_a_claimed_length_takes_no_memory(tmp_path, opcode):
    """The file has a few bytes, and says that they are four gigabytes."""
    path = tmp_path / "claim.bin"
    length = struct.pack("<I", (1 << 31) - 1) if opcode == "LONG4" else struct.pack("<Q", 4 << 30)
    path.write_bytes(b"\x80\x05" + getattr(pickle, opcode) + length + b"few.")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"claim\.bin is not a readable pickle"):
        read_pairs(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_every_truncation_is_one_sentence(tmp_path):
    path = tmp_path / "cut.bin"
    whole = pickle.dumps(([np.frombuffer(p, np.uint8) for p in PAYLOADS], SAME), protocol=3)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.bin .*") as caught:
            read_pairs(path)
        assert "\n" not in str(caught.value)


def test_random_damage_never_escapes(tmp_path):
    generator = np.random.default_rng(0)
    whole = pickle.dumps(([np.frombuffer(p, np.uint8) for p in PAYLOADS], SAME), protocol=3)
    path = tmp_path / "damaged.bin"
    for _ in range(600):
        damaged = bytearray(whole)
        for position in generator.integers(len(whole), size=3):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        # Harmless damage (inside a payload) still reads; any other error type fails the test.
        with contextlib.suppress(ValueError):
            read_pairs(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "a dict of 1, expected the two lists"),
        ((PAYLOADS, SAME, 3), "a tuple of 3, expected the two lists"),
        ((b"abc", SAME), "a bytes of 3 and a list of 2"),
        ((PAYLOADS, [True]), "4 images and 1 flags"),
        (([], []), "0 images and 0 flags"),
        ((["text", b"x"], [True]), r"image 0 is 'text' \(str\)"),
        (([b"x", b""], [True]), "image 1 is a bytes of 0"),
        (([b"x", b"y"], [2]), r"flag 0 is 2 \(int\)"),
        (([b"x", b"y"], ["yes"]), "flag 0 is 'yes'"),
        (([b"x", b"y"], [0.5]), r"flag 0 is 0\.5 \(float\)"),
        (([b"x", b"y"], np.array([-1.0])), r"flag 0 is -1\.0 \(float\)"),
        (([b"x", b"y"], np.array([float("nan")])), r"flag 0 is nan"),
        (([b"x"] * 8, np.eye(2, dtype=bool)), r"flags in a numpy array of shape \(2, 2\)"),
        ((np.zeros((2, 9), np.uint8), [1]), r"a numpy array of shape \(2, 9\) and a list of 1"),
        (([b"x", b"y"], np.array(["same"])), "a numpy array of type 'U4'"),
        (([np.zeros(3, np.float32), b"y"], [1]), "is refused: it holds a numpy array of type 'f4'"),
        (([np.zeros((3, 3), np.uint8), b"y"], [1]), r"shape \(3, 3\)"),
    ],
)
def test_other_contents_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path / "other.bin", content))


def test_write_pairs_checks_counts(tmp_path):
    with pytest.raises(ValueError, match="3 images and 1 flags, expected two images for each"):
        write_pairs(tmp_path / "set.bin", PAYLOADS[:3], [True])
    assert not list(tmp_path.iterdir())


def test_unreadable_text_file(tmp_path):
    path = tmp_path / "text.bin"
    path.write_text("this is no pickle\n")
    with pytest.raises(ValueError, match="not a readable pickle"):
        read_pairs(str(path))


def test_missing_file(tmp_path):
    with pytest.raises(OSError, match=r"there is no file .*none\.bin, expected a verification set"):
        read_pairs(tmp_path / "none.bin")
