"""Image-classification data sets from TFDS, as deterministic input pipelines."""

from tfnorm.data.augmentation import AUGMENTATIONS
from tfnorm.data.dataset import Dataset, load

__all__ = ["AUGMENTATIONS", "Dataset", "load"]
