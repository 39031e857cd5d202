"""Optimizers of models whose trainable variables have become others: anew, with what they knew.

Keras' optimizers are for the variables that they were built for, in their order.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import keras
from keras.src.utils.tracking import DotNotTrackScope  # Keras has no public name for it

from tfnorm.errors import UserError

_UNDECAYED = "_exclude_from_weight_decay"
_AVERAGES = "_model_variables_moving_average"


class Renewal(NamedTuple):
    """A compiled model, the optimizer that it had, and the one that it is to have."""

    model: keras.Model
    old: keras.optimizers.Optimizer
    new: keras.optimizers.Optimizer

    def do(self) -> None:
        """Gives the model the new one."""
        _set(self.model, self.new)

    def undo(self) -> None:
        """Gives it the old one back."""
        _set(self.model, self.old)


def renewals(model: keras.Layer, removed: Collection[keras.Variable]) -> list[Renewal]:
    """What is needed in a model and below, so that optimizers know its variables as they are now.

    They are in the order of the model, in which Keras finds them in a file, and have all that the
    old ones knew of the variables that have stayed. Nothing is changed yet.

    Args:
        model: converted, in place.
        removed: variables that it had before.

    Raises:
        UserError: an optimizer cannot be made from its configuration.
    """
    gone = {id(v) for v in removed} - {id(v) for v in model.variables}
    found = []
    for compiled in model._flatten_layers():
        old = getattr(compiled, "optimizer", None)
        if not getattr(old, "built", False):
            continue
        wanted = _wanted(compiled, old._trainable_variables, gone)
        if wanted is not None:
            found.append(Renewal(compiled, old, _renewed(old, wanted, compiled.name)))
    return found


def _wanted(
    model: keras.Model, known: Sequence[keras.Variable], gone: Collection[int]
) -> list[keras.Variable] | None:
    """The variables of an optimizer from now on; None if they are those that it knows."""
    own = list(model.trainable_variables)
    ids = {id(v) for v in own}
    others = [v for v in known if id(v) not in ids and id(v) not in gone]  # such as frozen ones
    stayed = [id(v) for v in known if id(v) in ids]
    is_same = stayed == [id(v) for v in own] and len(others) + len(own) == len(known)
    return None if is_same else [*own, *others]


def _renewed(
    old: keras.optimizers.Optimizer, variables: list[keras.Variable], name: str
) -> keras.optimizers.Optimizer:
    try:
        new = type(old).from_config(old.get_config())
    except Exception as error:  # whatever the code of a class raises
        raise UserError(
            f"The optimizer of {name!r} has to be made anew for the converted model, and "
            f"{type(old).__name__} cannot be made from its configuration ({error}). Convert the "
            "model before it is fitted, or compile it with another optimizer before. The model is "
            "as it was."
        ) from error
    for before, after in zip(_nested(old), _nested(new), strict=True):
        for attribute, value in vars(before).items():
            if attribute.startswith(_UNDECAYED):
                setattr(after, attribute, value)
    new.build(variables)
    for before, after in zip(_nested(old), _nested(new), strict=True):
        _carry_over(before, after, variables)
    return new


def _nested(optimizer: keras.optimizers.Optimizer) -> Iterator[keras.optimizers.Optimizer]:
    """It, and those that it wraps, as loss scaling does."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _carry_over(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
) -> None:
    """Counts and scales, and of each variable that was known its momenta and averages."""
    number = {id(v): index for index, v in enumerate(old._trainable_variables)}
    for name, value in vars(old).items():
        ours = getattr(new, name, None)
        if isinstance(value, keras.Variable):
            _assign(ours, value)
        elif _are_of_variables(value, number) and _are_of_variables(ours, variables):
            for variable, slot in zip(variables, ours):
                if id(variable) in number:
                    _assign(slot, value[number[id(variable)]])
                elif name == _AVERAGES:  # which would begin at 0 in mid-run
                    _assign(slot, variable)


def _are_of_variables(value: object, variables: Collection) -> bool:
    """Whether it has something for each variable."""
    return isinstance(value, list | tuple) and len(value) == len(variables)


def _assign(slot: object, value: object) -> None:
    both = isinstance(slot, keras.Variable) and isinstance(value, keras.Variable)
    if both and slot.shape == value.shape:
        slot.assign(value)


def _set(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    with DotNotTrackScope():
        model.optimizer = optimizer
