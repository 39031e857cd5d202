"""The studies that there are: `python -m tfnorm.compare --study=NAME`."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.study.chapter import Chapter
from tfnorm.study.experiments import (
    batch_size,
    batch_statistics,
    cbn_burn_in,
    cbn_window,
    comparison,
    detection,
    gradient_batch,
    instances,
    kalman,
    learning_rate,
    mabn_ablation,
    micro_batches,
    non_iid,
    segmentation,
    synchronization,
)
from tfnorm.study.grid import Grid


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid that is made for norms, seeds and what its runs have in common.

    Attributes:
        build: Makes the grid from names of norms, seeds and the common configuration.
        norms: The norms that it compares by default.
        defaults: Fields of the common configuration, where they are not the trainer's defaults.
        chapter: What the page of results says of it; None if its report is a table and an
            exported model.
    """

    build: Callable[[Sequence[str], Sequence[int], training.Config], Grid]
    norms: tuple[str, ...]
    defaults: Mapping[str, Any]
    chapter: Chapter | None = None


_OF_BATCHES = ("bn", "brn", "mabn", "cbn", "bkn")
# 1,200 steps of 32 images: half a minute a run on one core, most of cbn's more.
_SMALL = {
    "dataset": "fashion_mnist",
    "model": "resnet14",
    "width": 16,
    "stem_stride": 2,
    "replica_batch_size": 32,
    "train_examples": 9600,
    "epochs": 4,
}
# 300 steps of 8 crops, then the first of the test images, whole: half a minute a run on one core.
# bn on 8 crops has a mIoU of 21 % with 0.02 and 0.05 as the learning rate, and 10 % with 0.1.
_SCENES = {
    "task": "segmentation",
    "dataset": "camvid",
    "model": "pspnet",
    "backbone": "resnet8",
    "test_split": "test[:30%]",
    "stem_stride": 2,
    "model_options": {"head_width": 64},
    "image_size": "96,128",
    "augment": "random_crop_flip",
    "replica_batch_size": 8,
    "steps": 300,
    "learning_rate": 0.02,
    "reference_batch_size": 0,
    "warmup_epochs": 0.5,
    "evaluation_batch_size": 8,
}
# 150 steps of 4 images: half a minute a run on one core. bn on all four, from scratch, has an AP of
# 15 % with 0.02 as the learning rate, 24 % with 0.05, and 4 % with 0.1.
_CELLS = {
    "task": "detection",
    "dataset": "bccd",
    "model": "retinanet",
    "backbone": "resnet8",
    "stem_stride": 2,
    "model_options": {
        "min_level": 2, "max_level": 4, "head_width": 32, "head_convolutions": 2,
    },
    "image_size": "96,128",
    "augment": "scale_jitter_flip",
    "replica_batch_size": 4,
    "steps": 150,
    "learning_rate": 0.05,
    "reference_batch_size": 0,
    "warmup_epochs": 0.5,
    "evaluation_batch_size": 8,
}  # fmt: skip
# 300 steps of one or two images, then the first of the test images: a minute a run on one core.
_NUCLEI = {
    "task": "instance_segmentation",
    "dataset": "dsb2018",
    "model": "mask_rcnn",
    "backbone": "resnet8",
    "stem_stride": 2,
    "model_options": {
        "min_level": 2, "max_level": 3, "head_width": 32, "head_convolutions": 2, "fc_width": 128,
        "anchor_size": 2.5, "canonical_level": 5, "regions": 64, "proposals": 200,
        "candidates": 300,
    },
    "test_split": "test[:20%]",
    "image_size": "128,128",
    "augment": "scale_jitter_flip",
    "replica_batch_size": 2,
    "steps": 300,
    "learning_rate": 0.02,
    "reference_batch_size": 0,
    "warmup_epochs": 0.1,
    "max_objects": 375,
    "evaluation_batch_size": 8,
}  # fmt: skip
# What --quick makes of a study: a tenth of the steps of a shallower network. Not a narrower one:
# oneDNN in TensorFlow 2.21 writes past its memory in the kernel gradient of a 1×1 convolution with
# stride 2 and less than 16 channels on few images, whatever the norm, and the process dies.
_QUICK = {"train_examples": 960}
_QUICK_RESNET = {**_QUICK, "model": "resnet8"}
_QUICK_SCENES = {"train_examples": 96, "test_split": "test[:10]", "steps": 12}

STUDIES = types.MappingProxyType(
    {
        # Norms of a batch, and gn for one that is none. With these defaults it takes minutes.
        "compare": Study(
            comparison.comparison,
            (*_OF_BATCHES, "syncbn", "gn"),
            {"num_replicas": 4, "replica_batch_size": 2, "epochs": 4},
        ),
        "learning-rate": Study(learning_rate.learning_rate, ("bn",), _SMALL, learning_rate.CHAPTER),
        "batch-size": Study(
            batch_size.batch_size,
            (*_OF_BATCHES, "on", "evalnorm", "sn", "bin", "gn", "gn_ws", "ln", "in"),
            _SMALL,
            batch_size.CHAPTER,
        ),
        "micro-batches": Study(
            micro_batches.micro_batches,
            (*_OF_BATCHES, "gn"),
            {**_SMALL, "train_examples": 0},
            micro_batches.CHAPTER,
        ),
        "gradient-batch": Study(
            gradient_batch.gradient_batch,
            (*_OF_BATCHES, "gn"),
            {**_SMALL, "train_examples": 3200},
            gradient_batch.CHAPTER,
        ),
        "mabn-ablation": Study(
            mabn_ablation.mabn_ablation, ("bn", "brn"), _SMALL, mabn_ablation.CHAPTER
        ),
        "cbn-window": Study(cbn_window.cbn_window, ("bn", "cbn"), _SMALL, cbn_window.CHAPTER),
        "cbn-burn-in": Study(cbn_burn_in.cbn_burn_in, ("bn", "cbn"), _SMALL, cbn_burn_in.CHAPTER),
        "bkn": Study(
            kalman.kalman,
            ("bn", "bkn"),
            {**_SMALL, "model": "inception_small", "train_examples": 6000, "epochs": 2},
            kalman.CHAPTER,
        ),
        "statistics": Study(
            batch_statistics.batch_statistics,
            ("bn", "mabn"),
            _SMALL,
            batch_statistics.CHAPTER,
        ),
        "non-iid": Study(non_iid.non_iid, (*_OF_BATCHES, "gn"), _SMALL, non_iid.CHAPTER),
        "sync": Study(
            synchronization.synchronization,
            (*_OF_BATCHES, "syncbn"),
            {
                **_SMALL,
                "model": "resnet8",
                "num_replicas": 8,
                "replica_batch_size": 2,
                "train_examples": 4800,
                "epochs": 2,
            },
            synchronization.CHAPTER,
        ),
        "segmentation": Study(
            segmentation.segmentation,
            (*_OF_BATCHES, "on", "evalnorm", "syncbn", "gn", "gn_ws"),
            _SCENES,
            segmentation.CHAPTER,
        ),
        "detection": Study(
            detection.detection,
            ("none", "bn", "mabn", "cbn", "syncbn", "gn"),
            _CELLS,
            detection.CHAPTER,
        ),
        "instances": Study(
            instances.instances,
            ("bn", "brn", "mabn", "cbn", "syncbn", "gn"),
            _NUCLEI,
            instances.CHAPTER,
        ),
    }
)


def quick(study: Study) -> Study:
    """A small version of a study, in minutes: too short for what the papers claim.

    The comparison, which has no chapter, takes minutes as it is.
    """
    if not study.chapter:
        return study
    if "task" in study.defaults:
        smaller = _QUICK_SCENES
    else:
        is_resnet = study.defaults["model"].startswith("resnet")
        smaller = _QUICK_RESNET if is_resnet else _QUICK
    defaults = {**study.defaults, **smaller}
    chapter = dataclasses.replace(study.chapter, claims=lambda found: [])
    return dataclasses.replace(study, defaults=defaults, chapter=chapter)


def get(name: str) -> Study:
    """The study of this name.

    Raises:
        UserError: There is none; the message lists those that there are.
    """
    if name not in STUDIES:
        raise UserError(f"unknown study '{name}'; known: {', '.join(STUDIES)}")
    return STUDIES[name]
