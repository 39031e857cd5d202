"""Which examples to train with and which to test on: TFDS' split expressions."""

import re
from typing import Any

from tfnorm.errors import UserError

# In the order of preference; the last is what TFDS calls it in a few data sets.
TEST_SPLITS = ("test", "validation")


def select(builder: Any, expression: str, flag: str) -> Any:
    """The part of a data set that a split expression names.

    Args:
        builder: A prepared tfds.core.DatasetBuilder.
        expression: Such as "train", "train[:80%]" or "train[80%:]+validation"; the syntax is
            described at https://www.tensorflow.org/datasets/splits.
        flag: The flag that said so, for the messages.

    Returns:
        A tfds.core.SplitInfo, with `num_examples` and `file_instructions`.

    Raises:
        UserError: TFDS refuses the expression, or no example is in it.
    """
    try:
        split = builder.info.splits[expression]
        examples = split.num_examples
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"--{flag}='{expression}' is no split of data set '{builder.name}' "
            f"({_reason(error)}); it has {listing(builder)}"
        ) from None
    if examples <= 0:
        raise UserError(
            f"--{flag}='{expression}' of data set '{builder.name}' is empty; it has "
            f"{listing(builder)}"
        )
    return split


def train(builder: Any, expression: str | None = None) -> Any:
    """The split to train with: the one asked for, or "train".

    Raises:
        UserError: As `select`, or there is no split "train" and none was asked for.
    """
    if expression is None and "train" not in builder.info.splits:
        raise UserError(
            f"data set '{builder.name}' has no train split, only {listing(builder)}; "
            "say what to train with by --train_split"
        )
    return select(builder, "train" if expression is None else expression, "train_split")


def test(builder: Any, expression: str | None = None) -> Any:
    """The split to evaluate on: the one asked for, else "test", else "validation".

    Raises:
        UserError: As `select`, or there is neither and none was asked for.
    """
    if expression is None:
        expression = default_test(builder)
    return select(builder, expression, "test_split")


def default_test(builder: Any) -> str:
    """The split to evaluate on where none is asked for: "test", else "validation".

    Raises:
        UserError: There is neither.
    """
    for name in TEST_SPLITS:
        if name in builder.info.splits:
            return name
    raise UserError(
        f"data set '{builder.name}' has neither a test nor a validation split, only "
        f"{listing(builder)}; set a part of it aside, as by "
        "--train_split='train[:80%]' --test_split='train[80%:]'"
    )


def common(one: Any, other: Any) -> int:
    """The number of examples that two splits share."""
    return sum(
        max(0, min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip))
        for a in one.file_instructions
        for b in other.file_instructions
        if a.filename == b.filename
    )


def listing(builder: Any) -> str:
    """All splits with their sizes, such as "train (367), test (233)"."""
    splits = builder.info.splits
    return ", ".join(f"{name} ({splits[name].num_examples})" for name in splits) or "no splits"


def _reason(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    text = re.sub(r"Error parsing split .*?/splits", "", text, count=1, flags=re.DOTALL)
    return " ".join(text.split()).rstrip(".")
