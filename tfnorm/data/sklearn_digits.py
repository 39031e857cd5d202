"""The 8×8 handwritten digits that scikit-learn ships, as a TFDS builder."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

_TEST_FRACTION = 0.2

HOMEPAGE = "https://doi.org/10.24432/C50P49"

CITATION = """\
@misc{optical_recognition_of_handwritten_digits_80,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {{Optical Recognition of Handwritten Digits}},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey 8×8 images of ten digits: 1,437 to train and 360 to test, without a download."""

    name = "sklearn_digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "A stratified split, fixed once and for all."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download: the images are part of scikit-learn.
        pixels, labels, splits = split_digits()
        return {
            split: self._generate_examples(pixels, labels, own) for split, own in splits.items()
        }

    def _generate_examples(
        self, pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator:
        for index in indices:
            yield int(index), {"image": pixels[index], "label": int(labels[index])}


def split_digits() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All digits: pixels [n, 8, 8, 1] uint8, labels [n], and the numbers of each split's."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_FRACTION, stratify=labels, random_state=0
    )
    # scikit-learn's grey levels go from 0 to 16.
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return pixels, labels, {"train": train, "test": test}
