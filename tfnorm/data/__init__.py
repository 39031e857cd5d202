"""Data sets from TFDS as deterministic input pipelines: records, the pipeline, transforms."""

from tfnorm.data.augmentation import AUGMENTATIONS
from tfnorm.data.dataset import Dataset, load
from tfnorm.data.records import Example, Records, Transform
from tfnorm.data.sampling import SAMPLINGS

__all__ = ["AUGMENTATIONS", "SAMPLINGS", "Dataset", "Example", "Records", "Transform", "load"]
