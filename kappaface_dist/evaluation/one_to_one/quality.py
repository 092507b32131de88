"""Does quality tell which images fail? Error against the share of rejected images.

The error versus reject characteristic (Grother & Tabassi 2007): the images of lowest quality are
rejected, a pair with one of them is not compared, and the error of the others is measured at a
threshold that stays as it is. The quality of an image is the length of its embedding, which grows
with how well a face can be seen (Meng et al. 2021).

Shapes: P pairs, X shares.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kappaface_dist.evaluation.protocol import as_cosine

# With fewer same pairs left the error is noise, and the curve ends.
FEWEST = 10
SHARES = tuple(n / 100 for n in range(96))


@dataclass(frozen=True)
class RejectCurve:
    """The error of what is left, over the share of images that are rejected.

    Attributes:
        share_X: of the images.
        fnmr_X: false non-matches among the same pairs that are left; the shares end where they
            are fewer than FEWEST.
        fmr_X: false matches among the different pairs that are left; NaN where none is.
        far: the false accept rate of the whole set that the threshold is for.
    """

    share_X: np.ndarray
    fnmr_X: np.ndarray
    fmr_X: np.ndarray
    threshold: float
    far: str

    @property
    def area(self) -> float:
        """The mean of the FNMR over the shares; below its first value, quality tells something."""
        width = self.share_X[-1] - self.share_X[0]
        if not width:
            return float(self.fnmr_X[0])
        return float(np.trapezoid(self.fnmr_X, self.share_X) / width)

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        every = slice(None, None, 5)
        return {
            "quality": "length of the embedding",
            "far": self.far,
            "threshold": self.threshold,
            "fnmr": float(self.fnmr_X[0]),
            "area": self.area,
            "largest_share": float(self.share_X[-1]),
            "rejected": self.share_X[every].tolist(),
            "fnmr_of_rest": self.fnmr_X[every].tolist(),
            "fmr_of_rest": [x if np.isfinite(x) else None for x in self.fmr_X[every].tolist()],
        }


def reject_curve(
    distance_P: np.ndarray,
    same_P: np.ndarray,
    quality_P2: np.ndarray,
    *,
    threshold: float,
    far: str,
) -> RejectCurve | None:
    """The curve at one threshold; None where quality is the same everywhere, or pairs are few.

    Args:
        threshold: the cosine from which on a pair is called the same.
        quality_P2: of the two images of each pair, higher is better; an image in several pairs is
            rejected as often.
    """
    if same_P.sum() < FEWEST or np.ptp(quality_P2) <= 1e-6 * np.abs(quality_P2).max():
        return None
    place_P2 = np.empty(quality_P2.size, dtype=np.int64)
    place_P2[np.argsort(quality_P2.ravel(), kind="stable")] = np.arange(quality_P2.size)
    lowest_P = place_P2.reshape(-1, 2).min(axis=1)
    accepted_P = as_cosine(distance_P) >= threshold
    shares, missed, false = [], [], []
    for share in SHARES:
        left_P = lowest_P >= round(share * quality_P2.size)
        if (left_P & same_P).sum() < FEWEST:
            break
        shares.append(share)
        missed.append(float(np.mean(~accepted_P[left_P & same_P])))
        different_P = left_P & ~same_P
        false.append(float(np.mean(accepted_P[different_P])) if different_P.any() else np.nan)
    return RejectCurve(np.array(shares), np.array(missed), np.array(false), threshold, far)
