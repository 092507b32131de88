"""RecordIO bytes put together by hand, for what the writer refuses to write."""

import struct
from pathlib import Path

import numpy as np

from kappaface_dist.data.images import encode_jpeg

MAGIC = 0xCED7230A


def part(cflag: int, body: bytes) -> bytes:
    return struct.pack("<II", MAGIC, cflag << 29 | len(body)) + body + bytes(-len(body) % 4)


def record(label: float, payload: bytes, key: int = 0) -> bytes:
    return part(0, struct.pack("<IfQQ", 0, label, key, 0) + payload)


def jpeg(seed: int, size: int = 112) -> bytes:
    """A smooth picture, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode_jpeg(np.kron(coarse, np.ones((size // 4, size // 4, 1), dtype=np.uint8)))


def write_records(path: Path, labels: list[float], size: int = 112) -> Path:
    """A .rec without .idx: one small picture for each label."""
    path.write_bytes(b"".join(record(label, jpeg(i, size), i) for i, label in enumerate(labels)))
    return path


def vector_record(labels: list[float], payload: bytes, key: int = 0) -> bytes:
    """As MXNet packs several labels: as many as the flag says, in front of the payload."""
    header = struct.pack("<IfQQ", len(labels), 0, key, 0)
    return part(0, header + struct.pack(f"<{len(labels)}f", *labels) + payload)


def write_vectors(path: Path, labels: list[list[float]], size: int = 16) -> Path:
    """A .rec without .idx: one small picture for each list of labels."""
    records = [vector_record(own, jpeg(i, size), i) for i, own in enumerate(labels)]
    path.write_bytes(b"".join(records))
    return path
