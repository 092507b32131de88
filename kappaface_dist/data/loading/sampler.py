"""The order of the images: one endless stream, epoch after epoch, each a permutation.

Training reads the stream from left to right. `position` is the number of images that all ranks
have taken since the start; a step takes the next G = N·B, rank r the r-th B of them. A batch may
straddle two epochs, so every image comes exactly once per epoch with no padding, every rank has the
same number of steps, and training can resume at any position on any number of ranks.
Shapes: B images on this rank, P places in the order.
"""

import math
from dataclasses import dataclass

import numpy as np

from kappaface_dist.counter_random import mix64, uniform
from kappaface_dist.data.sources.base import WINDOW_BLOCKS

NUM_ROUNDS = 12
CHUNK = 1 << 15  # of images worked on at once: fits the processor's cache
FEW = 1 << 12
MAX_IMAGES = 1 << 31


@dataclass(frozen=True)
class Shuffle:
    """The stream over num_images images.

    The permutation of an epoch is never stored, each place of it is computed when asked for: no
    memory and no pause between epochs, for 100 million images too.

    Attributes:
        block: 0 for a permutation of all images. Otherwise, for slow disks: blocks of so many
            neighbouring images are put in random order, and only within windows of 64 blocks are
            the images mixed; so the disk is read by the block.
    """

    num_images: int
    seed: int
    block: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.num_images <= MAX_IMAGES

    def indices(self, position: int, count: int) -> np.ndarray:
        """The images at position, position + 1, ... of the stream: int64 [count]."""
        out_B = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, first = divmod(position + done, self.num_images)
            num = min(count - done, self.num_images - first, CHUNK)
            key = mix64(self.seed, epoch)
            if self.block:
                num = min(num, self._window_end(first) - first)
                out_B[done : done + num] = self._in_blocks(first, num, key)
            else:
                places = np.arange(first, first + num, dtype=np.uint32)
                out_B[done : done + num] = permute(places, self.num_images, key)
            done += num
        return out_B

    def _window_end(self, place: int) -> int:
        """The place after the window that holds this place of an epoch; the last takes the rest."""
        window = self.block * WINDOW_BLOCKS
        last = max(self.num_images // window - 1, 0)
        number = min(place // window, last)
        return self.num_images if number == last else (number + 1) * window

    def _in_blocks(self, first: int, num: int, key: int) -> np.ndarray:
        """The images at num places of an epoch from first on, all of one window."""
        window = self.block * WINDOW_BLOCKS
        end = self._window_end(first)
        start = min(first // window, max(self.num_images // window - 1, 0)) * window
        places = np.arange(first - start, first - start + num, dtype=np.uint32)
        mixed = start + permute(places, end - start, mix64(key, 1, start)).astype(np.int64)
        # What is left over after the last whole block stays at the end, in the last window.
        num_blocks = self.num_images // self.block
        is_whole = mixed < num_blocks * self.block
        block, within = np.divmod(mixed[is_whole], self.block)
        if num_blocks:
            block = permute(block.astype(np.uint32), num_blocks, mix64(key, 0)).astype(np.int64)
        mixed[is_whole] = block * self.block + within
        return mixed


def permute(place_P: np.ndarray, size: int, key: int) -> np.ndarray:
    """The items, of 0..size-1 in an order chosen by key, at the given places: uint32 [P].

    A generalised Feistel network on the numbers below a·b, just above size; a result beyond size is
    put in again until it is below (J. Black, P. Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002, section 5). For a few items that is not random enough: they are sorted by a hash.
    """
    if size <= FEW:
        hash_S = uniform(key, 0, np.arange(size))
        return np.argsort(hash_S, kind="stable")[place_P].astype(np.uint32)
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = [mix64(key, i) & 0xFFFFFFFF for i in range(NUM_ROUNDS)]
    out_P = _feistel(place_P, a, b, keys)
    beyond = np.flatnonzero(out_P >= size)
    while len(beyond):
        again = _feistel(out_P[beyond], a, b, keys)
        out_P[beyond] = again
        beyond = beyond[again >= size]
    return out_P


def _feistel(number_P: np.ndarray, a: int, b: int, keys: list[int]) -> np.ndarray:
    """Add to the digits of number = high·a + low in turn a hash of the other, modulo b and a.

    Each addition can be undone, so different numbers stay different.
    """
    high_P = number_P // np.uint32(a)
    low_P = number_P - high_P * np.uint32(a)
    for i, key in enumerate(keys):
        # Half of the hash: the sum must not overflow.
        if i % 2:
            low_P = _modulo(low_P + (_hash(high_P, key) >> np.uint32(1)), a)
        else:
            high_P = _modulo(high_P + (_hash(low_P, key) >> np.uint32(1)), b)
    return high_P * np.uint32(a) + low_P


def _modulo(number_P: np.ndarray, modulus: int) -> np.ndarray:
    """number_P % modulus; numpy divides by a constant an order faster than it takes remainders."""
    return number_P - number_P // np.uint32(modulus) * np.uint32(modulus)


def _hash(half: np.ndarray, key: int) -> np.ndarray:
    """A multiply-xorshift mix of 32 bits (constants of C. Wellons' lowbias32)."""
    mixed = half ^ np.uint32(key)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x7FEB352D)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x846CA68B)
    mixed ^= mixed >> np.uint32(16)
    return mixed
