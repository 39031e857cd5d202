"""Image-classification data sets from TFDS, as deterministic input pipelines."""

from tfnorm.data.augmentation import AUGMENTATIONS
from tfnorm.data.dataset import Dataset, load
from tfnorm.data.sampling import SAMPLINGS

__all__ = ["AUGMENTATIONS", "SAMPLINGS", "Dataset", "load"]
