"""What happens to an example between its file and the model, as functions without state.

A transform here takes one example and a seed [2] and returns the example; what is random in it is
a function of the seed alone. It acts on image, mask, boxes, classes and instances together. `each`
makes of a chain of them a `tfnorm.data.records.Transform`, which takes a batch.
"""

from tfnorm.data.transforms.color_jitter import ColorJitter
from tfnorm.data.transforms.each import each
from tfnorm.data.transforms.evaluation import Resize, ResizeAndCenterCrop, WholeImage
from tfnorm.data.transforms.mask import ClassifyMask
from tfnorm.data.transforms.random_crop import RandomCrop
from tfnorm.data.transforms.random_flip import RandomFlip
from tfnorm.data.transforms.random_resized_crop import RandomResizedCrop
from tfnorm.data.transforms.resize_with_padding import ResizeWithPadding
from tfnorm.data.transforms.scale_jitter import ScaleJitter

__all__ = [
    "ClassifyMask",
    "ColorJitter",
    "RandomCrop",
    "RandomFlip",
    "RandomResizedCrop",
    "Resize",
    "ResizeAndCenterCrop",
    "ResizeWithPadding",
    "ScaleJitter",
    "WholeImage",
    "each",
]
