"""The run whose backbone the dense studies begin with."""

from tfnorm import training
from tfnorm.study.grid import Cell


def on_flowers(base: training.Config, image_size: str, steps: int) -> Cell:
    """A backbone that learns to classify photographs of flowers with bn: the same for every seed.

    Args:
        base: What the runs that begin with it have in common, its backbone among them.
        image_size: Height and width of the photographs, as the flag takes them.
        steps: How many it makes.
    """
    config = training.Config(
        task="classification", dataset="tf_flowers", data_dir=base.data_dir,
        train_split="train[:80%]", test_split="train[80%:]", image_size=image_size,
        augment="random_resized_crop_flip", model=base.backbone, width=base.width,
        stem_stride=base.stem_stride, norm="bn", replica_batch_size=16, steps=steps,
        learning_rate=0.05, reference_batch_size=0, evaluation_batch_size=32,
    )  # fmt: skip
    return Cell({"norm": "bn"}, config)
