"""Data sets from TFDS as deterministic input pipelines: records, the pipeline, transforms."""

from tfnorm.data.augmentation import AUGMENTATIONS
from tfnorm.data.dataset import Dataset
from tfnorm.data.example import Example
from tfnorm.data.loading import LOADINGS, load
from tfnorm.data.records import Records, Transform
from tfnorm.data.sampling import SAMPLINGS
from tfnorm.data.sizes import parse_size

__all__ = [
    "AUGMENTATIONS",
    "LOADINGS",
    "SAMPLINGS",
    "Dataset",
    "Example",
    "Records",
    "Transform",
    "load",
    "parse_size",
]
