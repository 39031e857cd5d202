"""The one registry of normalizers: from a name to all that is particular to a kind."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.layers import advised_options, batch_kalman_normalization
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_instance_normalization import BatchInstanceNormalization
from tfnorm.layers.batch_kalman_normalization import BatchKalmanNormalization
from tfnorm.layers.batch_normalization import BatchNormalization
from tfnorm.layers.batch_renormalization import BatchRenormalization
from tfnorm.layers.cross_iteration_batch_normalization import CrossIterationBatchNormalization
from tfnorm.layers.eval_normalization import EvalNormalization
from tfnorm.layers.moving_average_batch_normalization import MovingAverageBatchNormalization
from tfnorm.layers.normalizer import KERNELS, Normalizer, accepted_options
from tfnorm.layers.online_normalization import OnlineNormalization
from tfnorm.layers.switchable_normalization import SwitchableNormalization

__all__ = [
    "KERNELS",
    "NAMES",
    "Normalizer",
    "accepted_options",
    "concatenate_states",
    "entry_of",
    "get",
    "is_plain",
    "keeps_statistics",
    "leaves_state_alone",
    "name_of",
    "other_name",
    "register",
]

_REGISTRY: dict[str, Normalizer] = {}

NAMES = _REGISTRY.keys()
"""All names, in the order in which they were registered; those that are registered later too."""


def register(normalizer: Normalizer) -> Normalizer:
    """Makes a normalizer known under its name: to flags, models, convert, fold, studies and plots.

    Example:
        @keras.saving.register_keras_serializable(package="mine")
        class Halfway(tfnorm.layers.BatchNormalization):
            def normalize_batch(self, inputs, mask):
                return (inputs + super().normalize_batch(inputs, mask)) / 2

        norms.register(norms.Normalizer("halfway", Halfway, "half of batch normalization"))
        tfnorm.training.train(tfnorm.training.Config(norm="halfway"))
        tfnorm.convert(model, "halfway")

    A layer that derives from `ChannelNormalization` and infers by its formula needs no more than
    that. `Normalizer` says what else an entry may tell.

    Args:
        normalizer: the entry, without options of a user.

    Returns:
        The entry.

    Raises:
        UserError: the name belongs to another layer.
    """
    known = _REGISTRY.get(normalizer.name)
    if known is not None and _identity(known) != _identity(normalizer):
        raise UserError(
            f"the norm {normalizer.name!r} is registered already, for "
            f"{getattr(known.layer_class, '__name__', 'a bias')}. Choose another name."
        )
    _REGISTRY[normalizer.name] = normalizer
    return normalizer


def _identity(normalizer: Normalizer) -> tuple[str, str]:
    """A class that is defined again, as in a notebook, is the same one."""
    cls = normalizer.layer_class or type(None)
    return cls.__module__, cls.__qualname__


def get(name: str, /, **options: Any) -> Normalizer:
    """The normalizer called `name`, its layer to be made with `options`.

    Two options are not the layer's: `kernel` (see `Normalizer`), and `centralize`, an older way to
    say kernel="centralized" (True) or kernel=None (False).

    Raises:
        UserError: there is no such normalizer, or its layer does not take one of the options.
    """
    if name not in _REGISTRY:
        close = difflib.get_close_matches(str(name), NAMES, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown norm {name!r}; the known ones are {', '.join(NAMES)}.{hint}")
    norm = _REGISTRY[name]
    accepted = norm.accepted_options()
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UserError(
            f"norm {name!r} does not take {', '.join(unknown)}; "
            f"it takes {', '.join(accepted) or 'no options'}."
        )
    return dataclasses.replace(norm, kernel=_kernel(norm, options), options=options)


def _kernel(norm: Normalizer, options: dict[str, Any]) -> str | None:
    """Takes what says it out of the options."""
    if "centralize" in options:
        is_centralized = options.pop("centralize")
        if is_centralized not in (True, False):
            raise UserError(
                f"centralize of norm {norm.name!r} must be True or False, received "
                f"{is_centralized!r:.50}."
            )
        kernel = "centralized" if is_centralized else None
        if options.setdefault("kernel", kernel) != kernel:
            raise UserError(
                f"norm {norm.name!r} was given centralize and another kernel="
                f"{options['kernel']!r}. Give kernel alone."
            )
    kernel = options.pop("kernel", norm.kernel)
    if kernel is not None and kernel not in KERNELS:
        raise UserError(
            f"unknown kernel {kernel!r} of norm {norm.name!r}; "
            f"the known ones are {', '.join(KERNELS)}, and None."
        )
    return kernel


def concatenate_states(states: Sequence[Any]) -> Any:
    """The state of concatenated branches, from the states of the branches in the same order.

    Branches without one have no part in it; None if none has one.
    """
    present = [state for state in states if state is not None]
    return batch_kalman_normalization.concatenate_states(present) if present else None


def entry_of(layer: Any) -> Normalizer | None:
    """The entry of a normalizing layer, Keras' own included; None for any other layer.

    A layer of a class that is not registered has the entry of the class that it derives from. Of
    several names of one class it is the one that asks most of the layer's arguments.
    """
    for cls in type(layer).__mro__:
        if cls is keras.layers.BatchNormalization:
            return _REGISTRY[_name_of_keras_own(layer)]
        if cls is keras.layers.GroupNormalization:
            return _REGISTRY[_group_name(layer)]
        matching = [
            norm
            for norm in _REGISTRY.values()
            if norm.layer_class is cls
            and all(getattr(layer, key, None) == value for key, value in norm.defaults.items())
        ]
        if matching:
            return max(matching, key=lambda norm: len(norm.defaults))
    return None


def name_of(layer: Any) -> str | None:
    """The name of its `entry_of`."""
    entry = entry_of(layer)
    return None if entry is None else entry.name


def other_name(layer: Any) -> str | None:
    """The short name of one of Keras' normalizers that has no entry; None for any other layer."""
    return next((name for kind, name in _OTHERS.items() if isinstance(layer, kind)), None)


def keeps_statistics(layer: Any) -> bool:
    """Whether a layer keeps moving statistics of batches: Keras' own, or one of tfnorm's.

    It need not be registered.
    """
    return isinstance(layer, (ChannelNormalization, keras.layers.BatchNormalization))


_OTHERS = {
    keras.layers.LayerNormalization: "ln",
    keras.layers.RMSNormalization: "rms",
    keras.layers.UnitNormalization: "unit",
}
_INFERENCE = {
    "__call__",
    "as_numbers",
    "by_moving_statistics",
    "call",
    "infer",
    "normalize_for_inference",
}
_ANSWERS = {"inference_scale_and_offset", "effective_kernel"}


def is_plain(layer: Any) -> bool:
    """Whether a normalizer or kernel wrapper infers as it, or its registered class, says it does.

    A subclass may do anything in a method of its own; one that tells its map at inference itself
    (`inference_scale_and_offset`, `effective_kernel`) is taken at its word.
    """
    return _infers_as_registered(layer, _ANSWERS)


def leaves_state_alone(layer: Any) -> bool:
    """Whether inference is that of a registered class or of Keras', which changes no state.

    What a subclass tells of its map at inference says nothing of that.
    """
    return _infers_as_registered(layer, set())


def _infers_as_registered(layer: Any, trusted: set[str]) -> bool:
    """Whether no class before the registered one infers its own way; `trusted` methods say so."""
    registered = {*KERNELS.values(), *(norm.layer_class for norm in _REGISTRY.values())}
    for cls in type(layer).__mro__:
        if cls in registered or cls is keras.layers.BatchNormalization:
            return True
        if not trusted.isdisjoint(vars(cls)):
            return True
        if not _INFERENCE.isdisjoint(vars(cls)):
            return False
    return False


def _name_of_keras_own(layer: keras.layers.BatchNormalization) -> str:
    if getattr(layer, "renorm", False):  # an option of later versions of Keras
        return "brn"
    return "syncbn" if layer.synchronized else "bn"


def _group_name(layer: keras.layers.GroupNormalization) -> str:
    """By the number of groups: all channels together, each for itself, or anything between."""
    if layer.groups == 1:
        return "ln"
    channels = next((w.shape[0] for w in layer.weights), None)
    return "in" if layer.groups in (-1, channels) else "gn"


def _groups_of_at_least_4(channels: int) -> dict[str, int]:
    # Wu & He (2018) take 32 groups; narrow networks take fewer, of no less than 4 channels.
    return {"groups": math.gcd(channels, min(32, max(channels // 4, 1)))}


def _group_like(name: str, description: str, of_width: Any, **about: Any) -> Normalizer:
    group_normalization = keras.layers.GroupNormalization
    return Normalizer(
        name, group_normalization, description, foldable=False, of_width=of_width, **about
    )


# Colours that the colour-blind can tell apart (Okabe and Ito 2008, then Paul Tol), and a marker
# each for print without colours.
for _normalizer in (
    Normalizer(
        "bn",
        BatchNormalization,
        "batch normalization",
        advice="brn, mabn, cbn, bkn or gn, or a larger batch (syncbn if there are more replicas)",
        colour="#000000",
        marker="o",
    ),
    Normalizer(
        "syncbn",
        BatchNormalization,
        "BN over all replicas",
        defaults={"synchronized": True},
        colour="#0072B2",
        marker="s",
    ),
    Normalizer(
        "brn",
        BatchRenormalization,
        "batch renormalization",
        of_steps=advised_options.brn_of_steps,
        advice="mabn, which averages the gradient's statistics too, gn, or a larger batch",
        colour="#E69F00",
        marker="^",
    ),
    Normalizer(
        "mabn",
        MovingAverageBatchNormalization,
        "moving average BN of a centralized convolution",
        kernel="centralized",
        of_steps=advised_options.mabn_of_steps,
        advice="a longer window, gn, or a larger batch",
        colour="#D55E00",
        marker="D",
    ),
    Normalizer(
        "cbn",
        CrossIterationBatchNormalization,
        "cross-iteration BN",
        place="around",
        of_images=advised_options.cbn_of_images,
        of_steps=advised_options.cbn_of_steps,
        advice="a longer window, mabn, gn, or a larger batch",
        colour="#009E73",
        marker="v",
    ),
    Normalizer(
        "bkn",
        BatchKalmanNormalization,
        "batch Kalman normalization",
        place="chain",
        colour="#CC79A7",
        marker="P",
    ),
    Normalizer(
        "on",
        OnlineNormalization,
        "online normalization, example by example",
        of_steps=advised_options.on_of_steps,
        advice="mabn, gn, or gn_ws",
        colour="#332288",
        marker="p",
    ),
    Normalizer(
        "evalnorm",
        EvalNormalization,
        "BN that counts an example for itself at inference",
        foldable=False,
        colour="#AA4499",
        marker="d",
    ),
    Normalizer(
        "sn",
        SwitchableNormalization,
        "switchable normalization (instance, layer and batch)",
        foldable=False,
        colour="#117733",
        marker="8",
    ),
    Normalizer(
        "bin",
        BatchInstanceNormalization,
        "batch-instance normalization",
        foldable=False,
        colour="#661100",
        marker="H",
    ),
    _group_like("gn", "group normalization", _groups_of_at_least_4, colour="#56B4E9", marker="X"),
    _group_like(
        "gn_ws",
        "group normalization of a standardized convolution",
        _groups_of_at_least_4,
        kernel="standardized",
        colour="#6699CC",
        marker="x",
    ),
    _group_like(
        "ln",
        "layer normalization (one group)",
        lambda channels: {"groups": 1},
        colour="#999933",
        marker="<",
    ),
    _group_like(
        "in",
        "instance normalization (one channel a group)",
        lambda channels: {"groups": channels},
        colour="#882255",
        marker=">",
    ),
    Normalizer("none", None, "no normalization, a bias instead", colour="#888888", marker="*"),
):
    register(_normalizer)
