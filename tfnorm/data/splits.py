"""Which examples to train with and which to test on: TFDS' split expressions."""

import itertools
import re
from typing import Any

from tfnorm.errors import UserError

# In the order of preference; the last is what TFDS calls it in a few data sets.
TEST_SPLITS = ("test", "validation")


def check(builder: Any, expression: str, flag: str) -> str:
    """A split expression that names a part of a data set.

    Args:
        builder: A prepared tfds.core.DatasetBuilder.
        expression: Such as "train", "train[:80%]" or "train[80%:]+validation"; the syntax is
            described at https://www.tensorflow.org/datasets/splits.
        flag: The flag that said so, for the messages.

    Returns:
        The expression.

    Raises:
        UserError: TFDS refuses the expression, or no example is in it.
    """
    try:
        examples = builder.info.splits[expression].num_examples
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
    return expression


def train(builder: Any, expression: str | None = None) -> str:
    """The split to train with: the one asked for, or "train".

    Raises:
        UserError: As `check`, or there is no split "train" and none was asked for.
    """
    if expression is None and "train" not in builder.info.splits:
        raise UserError(
            f"data set '{builder.name}' has no train split, only {listing(builder)}; "
            "say what to train with by --train_split"
        )
    return check(builder, "train" if expression is None else expression, "train_split")


def test(builder: Any, expression: str | None = None) -> str:
    """The split to evaluate on: the one asked for, else "test", else "validation".

    Raises:
        UserError: As `check`, or there is neither and none was asked for.
    """
    if expression is not None:
        return check(builder, expression, "test_split")
    for name in TEST_SPLITS:
        if name in builder.info.splits:
            return check(builder, name, "test_split")
    raise UserError(
        f"data set '{builder.name}' has neither a test nor a validation split, only "
        f"{listing(builder)}; set a part of it aside with --test_split, such as "
        "--train_split='train[:80%]' --test_split='train[80%:]'"
    )


def common(builder: Any, one: str, other: str) -> int:
    """The number of examples that two splits share."""
    parts = [builder.info.splits[expression].file_instructions for expression in (one, other)]
    return sum(
        max(0, min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip))
        for a, b in itertools.product(*parts)
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
