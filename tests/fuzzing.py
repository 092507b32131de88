"""What is thrown at the project at random, and what may come of it.

A target takes a random generator, injects one fault, and says what came of it:
- survived: the result is that of the sound input;
- refused: an error of one sentence;
- said: another result, and a warning that says so;
- accepted: another input that is as good (a configuration; a picture or a text of a format that
  has no checksum, in which nobody can tell a changed pixel or name from another one).
Anything else is a fault: another exception, a message of several lines, a changed result in silence
where there is a checksum, a hang.
"""

import contextlib
import logging
import math
import multiprocessing as mp
import os
import pickle
import random
import signal
import time

import numpy as np

from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.folder import complete_checkpoints
from kappaface_dist.config.checks import RULES
from kappaface_dist.config.file import load_config, to_dict
from kappaface_dist.config.keys import Config
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.evaluation.sets.pair_file import read_pairs
from tests.integration.test_mutated_data import KINDS, expected_of, mutated, payload_of
from tests.unit.config.test_checks import VALUES, numbers

SECONDS = 30  # for one injection, on a crowded machine
ANSWERS = ("survived", "refused", "said", "accepted")


class Hang(BaseException):
    """An injection that does not come back."""


@contextlib.contextmanager
def time_limit():
    def end(*_):
        raise Hang(f"no answer within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Warnings(logging.Handler):
    """Whether the project warned of something while the block ran."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("kappaface_dist").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("kappaface_dist").removeHandler(self)


def outcome(action, good, *, has_checksum):
    """What became of action(), whose result is good where the input is sound."""
    with Warnings() as warnings:
        try:
            with time_limit():
                found = action()
        except (ValueError, RuntimeError, OSError) as error:
            sentence = str(error)
        else:
            sentence = None
    if sentence is not None:
        assert sentence, "an error without a word"
        assert "\n" not in sentence, f"several lines: {sentence}"
        return "refused"
    if same(found, good):
        return "survived"
    if warnings.lines:
        return "said"
    assert not has_checksum, "another result, and nothing was said"
    return "accepted"


def same(found, good):
    if isinstance(good, np.ndarray):
        return np.array_equal(found, good)
    return found == good


def of_file(path, read):
    """A target: the bytes of a file without a checksum are changed at random, and put back."""
    whole, good = path.read_bytes(), read()

    def inject(rng):
        path.write_bytes(mutated(whole, rng)[1])
        try:
            return outcome(read, good, has_checksum=False)
        finally:
            path.write_bytes(whole)

    return inject


def of_bits(path, read):
    """A target: one bit of a file that has a checksum."""
    whole, good = path.read_bytes(), read()

    def inject(rng):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            return outcome(read, good, has_checksum=True)
        finally:
            path.write_bytes(whole)

    return inject


def of_pictures():
    """Pictures of all formats; PNG alone has checksums."""
    payloads = {kind: payload_of(kind) for kind in KINDS}
    good = {kind: decode_picture(payload) for kind, payload in payloads.items()}

    def inject(rng):
        kind = sorted(KINDS)[rng.integers(len(KINDS))]
        damaged = mutated(payloads[kind], rng)[1]
        return outcome(lambda: decode_picture(damaged), good[kind], has_checksum=kind == "PNG")

    return inject


def of_config(folder):
    """Any value, mutated or not, for any key."""
    path = folder / "config.yaml"
    path.write_text("run: {steps: 3}\ndata: {train: x.rec}\n")
    names = [
        *RULES,
        "margin.scale",
        "margin.name",
        "evaluate.sets.a",
        "+evaluate.sets",
        *vars(Config()),
    ]

    def inject(rng):
        value = VALUES[rng.integers(len(VALUES))]
        if rng.random() < 0.5 and value:
            value = mutated(value.encode()[:200], rng)[1].decode(errors="replace")
        override = f"{names[rng.integers(len(names))]}={value}"

        def read():
            config = load_config(path, [override])
            assert all(map(math.isfinite, numbers(to_dict(config)))), override
            return config

        return outcome(read, None, has_checksum=False)

    return inject


def of_pickles(folder):
    """Programs in pickle's language, which must not run, around a sound verification set."""
    path, marker = folder / "set.bin", folder / "marker"
    sound = pickle.dumps(([b"one", b"two"], [True]), protocol=2)
    calls = [
        *(
            f"cos\nmkdir\n(V{marker}\ntR.".encode(),
            f"cbuiltins\nopen\n(V{marker}\nVw\ntR.".encode(),
        ),
        f"cposix\nsystem\n(Vtouch {marker}\ntR.".encode(),
        b"cnumpy\nload\n(V/etc/passwd\ntR.",
        b"cbuiltins\ngetattr\n(cbuiltins\nstr\nVmro\ntR.",
        f"(S'touch {marker}'\nios\nsystem\n.".encode(),
    ]
    pieces = [bytes([op[0]]) for op in map(str.encode, "(]})ltdeausbRoQ.0122j")] + [
        *(
            b"cos\nsystem\n",
            b"cnumpy\nndarray\n",
            b"cbuiltins\nbytearray\n",
            b"K\x07",
            b"N",
            b"\x88",
        ),
        *(b"c_codecs\nencode\n", b"X\x03\x00\x00\x00abc", b"J\xff\xff\xff\x7f", b"q\x00", b"h\x00"),
        *(
            b"\x81",
            b"\x93",
            b"\x94",
            b"\x85",
            b"\x8e" + b"\xff" * 8,
            b"B\xff\xff\xff\x7f",
            b"I01\n",
        ),
    ]

    def inject(rng):
        kind = rng.integers(3)
        if kind == 0:
            content = mutated(sound, rng)[1]
        elif kind == 1:
            call = calls[rng.integers(len(calls))]
            content = mutated(call, rng)[1] if rng.random() < 0.5 else call
        else:
            chosen = [pieces[rng.integers(len(pieces))] for _ in range(int(rng.integers(1, 30)))]
            content = b"".join([b"\x80\x02", *chosen, b"."])
        path.write_bytes(content)
        found = outcome(lambda: read_pairs(path).payloads, [b"one", b"two"], has_checksum=False)
        assert not marker.exists(), f"a pickle was run: {content!r}"
        assert kind == 0 or found == "refused", content
        return found

    return inject


def of_record(path):
    """A record with its side files; what lies in a .rec has no checksum of its own."""

    def read():
        return expected_of(open_catalog(path))

    good = read()
    index = path.with_name(f"{path.name}.kfindex")
    whole = {file: file.read_bytes() for file in (path, path.with_suffix(".idx"), index)}

    def inject(rng):
        file = [*whole][rng.integers(len(whole))]
        file.write_bytes(mutated(whole[file], rng)[1])
        try:
            return outcome(read, good, has_checksum=file == index)
        finally:
            for other, content in whole.items():
                other.write_bytes(content)

    return inject


def of_kills(path, fit, overrides):
    """A process that trains and saves is killed; what it leaves is sound, and the next goes on."""
    root = load_config(path, overrides).folder / "checkpoints"

    def inject(rng):
        before = complete_checkpoints(root)
        process = mp.get_context("fork").Process(target=_quietly, args=(fit, path, overrides))
        process.start()
        delay = float(rng.random()) * 0.5
        deadline = time.monotonic() + SECONDS
        # From the first new save on, at any moment.
        while process.is_alive() and complete_checkpoints(root) == before:
            assert time.monotonic() < deadline, "no save, and no end"
            time.sleep(0.01)
        process.join(delay)
        process.kill()
        process.join()
        for folder in complete_checkpoints(root):
            assert not checkpoint.verify(folder), folder
        return "survived"

    return inject


def _quietly(fit, path, overrides):
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    fit(path, *overrides)


def campaign(targets, num, seed):
    """num injections, chosen by weight; counts by target and answer.

    Args:
        targets: name: (weight, target).
    """
    choose = random.Random(seed)
    names = [*targets]
    weights = [targets[name][0] for name in names]
    counts = {name: dict.fromkeys(ANSWERS, 0) for name in names}
    for number in range(num):
        name = choose.choices(names, weights)[0]
        try:
            answer = targets[name][1](np.random.default_rng([seed, number]))
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}, injection {number}: {error!r}") from error
        counts[name][answer] += 1
    return counts
