"""``digits``: scikit-learn's 1,797 real handwritten digits (Alpaydin and Kaynak 1998, UCI), nothing to download.

The 8×8 images of 17 grey levels are resized to the wanted size (bilinear) and repeated to three channels; a fixed
permutation gives 1,500 to ``train`` and 297 to ``test``.
"""

import hashlib

import numpy as np
from PIL import Image

from bench.data.images import Decoded, Images, Labels, Progress

TRAIN_COUNT, SIDE = 1500, 8


class Digits:
    """The embedded data set, for the first command and for tests."""

    name = "digits"

    def content_sha256(self, progress: Progress) -> str:
        """A hash of scikit-learn's arrays; this reads them, 20 ms."""
        images, labels = self._load()
        return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def classes(self) -> tuple[str, ...]:
        """``0`` to ``9``."""
        return tuple(map(str, range(10)))

    def decode(self, split: str, size: int, progress: Progress) -> Decoded:
        """The images ``N×3×size×size`` and labels of a split."""
        images, labels = self._load()
        order = np.random.RandomState(0).permutation(len(labels))
        chosen = order[:TRAIN_COUNT] if split == "train" else order[TRAIN_COUNT:]
        resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images[chosen]]
        grey = np.stack([np.asarray(image) for image in resized])
        return Decoded(np.repeat(grey[:, None], 3, axis=1), labels[chosen])

    def image_side(self) -> int:
        """8 pixels."""
        return SIDE

    @staticmethod
    def _load() -> tuple[Images, Labels]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return np.rint(images.reshape(-1, SIDE, SIDE) * (255 / 16)).astype(np.uint8), labels.astype(np.int64)
