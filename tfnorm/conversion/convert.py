"""Converting the normalizers of a model, from any to any."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfnorm.conversion import kernels
from tfnorm.conversion.in_place import InPlace
from tfnorm.conversion.places import Found
from tfnorm.conversion.probe import Probe, difference
from tfnorm.conversion.rebuilding import Placed, Rebuilding
from tfnorm.conversion.report import Report, Row
from tfnorm.conversion.saved import record_when_saved
from tfnorm.errors import UserError
from tfnorm.layers import norms

_LOGGER = logging.getLogger("tfnorm")

Where = str | Callable[[keras.layers.Layer], bool]


def convert(
    model: keras.Layer,
    norm: str,
    *,
    in_place: bool = False,
    where: Where | None = None,
    strict: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> keras.Layer | Report:
    """Swaps the normalizers of a model for another kind, in a new model or in the model itself.

    By default a functional model is returned that shares nothing with the one given, which stays
    as it is. (Eager kernels are freed, so that a tf.function which has run before is optimized
    again in its next call, and tf.random's operations that were given a seed begin their sequence
    anew.) With `in_place=True` the model itself is changed and returned: any keras.Model or Layer,
    built or not, keeps its class, methods, losses, preprocessing, compile state, sharing and
    `trainable` flags. Take it for what is more than a graph of layers: subclassed models, a
    train_step of one's own, KerasHub's tasks; a warning says so where it matters.

    Normalizers are Keras' BatchNormalization and GroupNormalization and all of tfnorm's. γ, β, the
    moving statistics and all other weights are carried over, and so are axis, momentum, epsilon,
    initializers, regularizers, constraints, dtype policy, `trainable`, masks and names. From bn
    to brn, cbn, bkn, bin or evalnorm and back the outputs at inference stay what they are (of the
    last, until it has been trained, and without `training_batch_size`); `on` clips them, and `sn`
    mixes in what else an example tells. Otherwise:

    - `cbn` takes the convolution before it into itself; a bias becomes part of moving_mean, which
      is exact. The layer has the normalizer's name; in place it stands where the convolution
      stood, under that one's name.
    - `mabn` centralizes the kernel before it and drops its bias. That changes the outputs: a
      centralized kernel does not see the mean of its input patch. moving_mean is zero from then
      on, moving_variance starts with the variance carried over; `recalibrate` makes it the mean
      square of what the centralized kernel returns, training adapts the rest. Away from mabn the
      kernels are baked in, and outputs stay what they are.
    - `bkn` hands its state on along the graph: each layer takes that of the nearest one upstream;
      where branches meet, of the longest chain, the first of equally long ones. Not in place: the
      code of a model hands no state on.
    - `gn`, `ln` and `in` take γ and β alone, and hand no more on; `gn_ws` standardizes the kernel
      before it too, which changes the outputs.
    - Keras' BatchNormalization(renorm=True) counts as brn and becomes ours, with its statistics
      and the bounds of its `renorm_clipping`.

    Where the kind cannot take a place - no convolution before it (cbn, mabn), a layer called
    twice (cbn, mabn, bkn), a convolution that others use as well (cbn, mabn) and others, which the
    report tells - batch renormalization takes it: it can stand anywhere and infers the same.
    Normalizers that share their convolution go on to share it in a new model; in place they become
    brn, because one layer of the code cannot be two. Converting back undoes a conversion.

    In place, γ, β and kernels stay the same variables, so that a compiled optimizer goes on with
    what it knows of them; where a kind has other trainable variables besides, it is made anew and
    takes over what it knew of those that stay, its counts and its loss scale. Models trace `fit`
    again; a tf.function of one's own has to be traced anew. Other functional models over the same
    layers are converted with it.

    Saving what was converted in place: `save_weights`, and `load_weights` into a new model that
    was converted alike; or `model.save("....keras")`, which writes the new layers down beside the
    model's own config, and keras.models.load_model after `import tfnorm`. (Not
    keras.saving.save_model, nor as part of a model that holds it, which know the config alone.)

    Args:
        model: a functional or Sequential model, nested ones included; with in_place, any model
            or layer.
        norm: a name of `tfnorm.layers.norms.NAMES`, such as "brn".
        in_place: whether to change the model itself.
        where: which normalizers, by a regular expression that is searched in the path of the
            layer ("encoder/bn1") or a predicate of the layer; all by default.
        strict: whether a normalizer that cannot be what was asked for is an error.
        dry_run: whether to return the report alone.
        **options: arguments of the new layers, such as momentum=0.9 or window=4; they come before
            those carried over. Where another kind takes the place, it gets those that it knows.

    Returns:
        A functional model with variables of its own, not compiled; nested models are written out.
        Or, in place, the model. Its attribute `conversion_report` is the `Report`: one row for
        each normalizer, and the largest difference of the outputs on random inputs. With dry_run,
        that report.

    Raises:
        UserError: unknown norm or option, or a value that a layer cannot take; `where` is no
            regular expression, or one that matches nothing; the model has no graph of layers (and
            in_place is not asked for); no normalizer can be converted; or, with strict, one of
            them cannot. The model is as it was.

    Example:
        detector = keras_hub.models.RetinaNetObjectDetector(...)
        tfnorm.convert(detector, "mabn", in_place=True)
        detector.fit(images)  # with its own preprocessing, losses and train_step
        detector.save("detector.keras")
    """
    normalizer = norms.get(norm, **options)
    if normalizer.layer_class is None:
        raise UserError(
            f"norm {norm!r} has no layer to convert to. For a model without normalizers call "
            "tfnorm.fold(model)."
        )
    work = InPlace(model) if in_place else Rebuilding(model)
    selected = _select(work.found, where)
    placed = work.place(selected, normalizer)
    rows = tuple(_row(one, one in selected, placed.get(one), norm) for one in work.found)
    chosen = _rows_of(selected, rows, work.found)
    if strict:
        _check_all_placed(chosen, len(rows), norm)
    if not dry_run:
        _check_any_placed(chosen, model, in_place)
    probe = Probe(model)
    before = probe.answers(model)
    converted = work.finish(normalizer)
    after = probe.answers(converted)
    if dry_run:
        work.undo()
        return Report(norm, rows, *difference(before, after), shared=tuple(work.shared))
    if in_place and isinstance(after, str) and not isinstance(before, str):
        work.undo()
        raise UserError(
            f"The model {model.name!r} cannot be converted to {norm!r} in place: once converted, a "
            f"call of it fails ({after}). It is as it was. Leave layers out with where=, or "
            "in_place."
        )
    _warn_of_others(chosen, len(rows), norm)
    if in_place:
        record_when_saved(converted)
    report = Report(norm, rows, *difference(before, after), shared=tuple(work.shared))
    converted.conversion_report = report
    _warn_of_sharing(report)
    if not in_place:
        _warn_of_what_is_gone(model, norm)
        kernels.forget()
    return converted


def _rows_of(selected: list[Found], rows: Sequence[Row], found: list[Found]) -> list[Row]:
    return [row for row, one in zip(rows, found) if one in selected]


def _warn_of_others(rows: list[Row], total: int, norm: str) -> None:
    elsewhere = [row for row in rows if not row.placed]
    if elsewhere:
        _LOGGER.warning(
            "%d of %d normalizers could not become %s; see model.conversion_report",
            len(elsewhere),
            total,
            norm,
        )


def _warn_of_sharing(report: Report) -> None:
    if report.shared:
        _LOGGER.warning(
            "%s cannot be copied: the converted model shares the layers of the one that was given",
            ", ".join(report.shared),
        )


_NAMED = 12  # so many that a line can be read
_NO_BEHAVIOUR = {"build", "call", "compute_output_shape", "compute_output_spec", "get_config"}


def _warn_of_what_is_gone(model: keras.Model, norm: str) -> None:
    """Of a class with more than layers, the functional model that comes back has the layers."""
    names: dict[str, None] = {}
    for cls in type(model).__mro__:
        if cls.__module__.partition(".")[0] in ("keras", "tensorflow", "builtins"):
            continue
        names |= {
            name: None
            for name, value in vars(cls).items()
            if not name.startswith("_")
            and name not in _NO_BEHAVIOUR
            and not isinstance(value, classmethod | staticmethod | type)
        }
    if names:
        first = [*names][:_NAMED]
        rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        _LOGGER.warning(
            "%r of class %s became a plain functional model, without what its class adds: %s%s. "
            "tfnorm.convert(model, %r, in_place=True) keeps the class.",
            model.name,
            type(model).__name__,
            ", ".join(first),
            rest,
            norm,
        )


def _check_any_placed(rows: list[Row], model: keras.Layer, in_place: bool) -> None:
    if not rows:
        raise UserError(
            f"The model {model.name!r} has no normalizer to convert{_of_other_kinds(model)}."
        )
    if all(row.target == row.source and not row.placed for row in rows):
        lines = "\n".join(f"  {row.name}: {row.note}" for row in rows)
        cure = "\ntfnorm.convert(model, norm, in_place=True) reaches layers inside of others."
        raise UserError(
            f"None of the {len(rows)} normalizers of {model.name!r} can be converted:\n{lines}"
            f"{'' if in_place else cure}"
        )


def _of_other_kinds(model: keras.Layer) -> str:
    """Says which layers of it normalize in a way that nothing is made from."""
    found = [type(x).__name__ for x in model._flatten_layers() if norms.other_name(x)]
    names = [f"{found.count(kind)} {kind}" for kind in dict.fromkeys(found)]
    return f": its {' and '.join(names)} can be no source" if names else ""


def _select(found: list[Found], where: Where | None) -> list[Found]:
    if where is None:
        return found
    if callable(where):
        return _any_of([one for one in found if where(one.layer)], found, where)
    try:
        pattern = re.compile(where)
    except (re.error, TypeError) as error:
        raise UserError(
            f"where={where!r} is neither a regular expression ({error}) nor a predicate. Give one "
            "for the paths of normalizers, such as where='conv5_.*', or a function of the layer "
            "that returns True or False."
        ) from error
    return _any_of([one for one in found if pattern.search(one.path)], found, where)


def _any_of(selected: list[Found], found: list[Found], where: Where) -> list[Found]:
    if found and not selected:
        names = ", ".join(one.path for one in found)
        raise UserError(f"where={where!r} selects no normalizer. Those of the model are: {names}.")
    return selected


def _row(one: Found, selected: bool, placed: Placed | None, norm: str) -> Row:
    name = norms.name_of(one.layer)
    if placed is not None:
        target, note = placed
        return Row(one.path, name, target, target == norm, note)
    if not selected:
        return Row(one.path, name, name, name == norm, "not selected by where; left as it is")
    note = one.obstacle or "its state is used by others that stay; left as it is"
    return Row(one.path, name, name, name == norm, note)


def _check_all_placed(rows: list[Row], total: int, norm: str) -> None:
    wrong = [row for row in rows if row.target != norm]
    if wrong:
        lines = "\n".join(f"  {row.name}: {row.note}" for row in wrong)
        others = dict.fromkeys(row.target for row in wrong if row.target != row.source)
        cure = f", or take strict=False, which puts {', '.join(others)} in their place"
        raise UserError(
            f"{len(wrong)} of {total} normalizers cannot become {norm}:\n{lines}\n"
            f"Leave these out with where={cure if others else ''}."
        )
