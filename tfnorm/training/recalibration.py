"""Precise statistics: moving statistics measured over a data set instead of averaged on the way."""

import collections
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfnorm.data import untuned
from tfnorm.errors import Diverged, UserError, check_whole
from tfnorm.functional.suited import suited
from tfnorm.functional.view import View
from tfnorm.layers.batch_method import method_of
from tfnorm.layers.replicas import gather
from tfnorm.training.inputs import iterate
from tfnorm.training.tapping import normalized, normalizers, tapped

_ROUNDS_OF_SHARED = 10


def recalibrate(
    model: keras.Model,
    dataset: tf.data.Dataset | tf.distribute.DistributedDataset,
    steps: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replaces the moving statistics of every normalizer by those of a data set, in place.

    Moving averages lag behind the weights and are noisy where batches are small. This measures
    instead: mean and variance of each normalizer's input over the first `steps` batches, each
    position of each example counted once (batch moments are merged by count, so that the variance
    is E[σ²_B] + Var[μ_B], not the mean of the batches' variances).

    It goes from layer to layer: a normalizer is measured in inference mode, with all those before
    it already measured. So every statistic is that of the very network that will be exported, and
    it does not depend on how the data set is cut into batches, on a batch of one, or on how many
    replicas share the work. PreciseBN (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021;
    fvcore) takes one pass in training mode, where deeper layers see inputs that were normalized
    by their batch; with micro-batches these are not what inference sees. The price is one pass
    over the batches for each normalizer; some thousand examples are enough.

    What a layer makes of the moments is what its training tends to: MABN keeps the mean square,
    BKN what its chain estimates from them, all others mean and variance. Nothing else changes: no
    trainable weight, counter, buffer or history. Frozen layers (trainable=False) stay as they
    are, a layer that is called several times gets the moments of all its inputs together.

    Args:
        model: any Keras model with normalizers of tfnorm or Keras' BatchNormalization, subclassed
            ones too. Under a tf.distribute strategy all replicas measure, and get the result.
        dataset: inputs, or tuples of inputs and anything else, in batches (global batches under a
            strategy). It is iterated once for each normalizer; of an iterator, which cannot be, the
            first `steps` batches are kept in memory.
        steps: number of batches; a shorter data set is used whole.
        on_progress: called with (normalizers done, normalizers in all) after each.

    Raises:
        UserError: the model has no normalizer to measure, steps is no whole number from 1, or the
            data set is empty or no batches.
        RunError: the inputs of a normalizer are not finite; all statistics stay as they were.
    """
    check_whole("steps", steps, ", of batches")
    is_one = tf.is_tensor(dataset) or isinstance(dataset, (np.ndarray, Mapping))
    if is_one or not isinstance(dataset, Iterable):
        raise UserError(
            "recalibrate takes batches, one after the other, and received one "
            f"{type(dataset).__name__}; give [inputs] for a single batch"
        )
    layers = _measurable(model)
    strategy = getattr(layers[0].moving_mean.value, "distribute_strategy", None)
    strategy = strategy or tf.distribute.get_strategy()
    if isinstance(dataset, Iterator):
        dataset = list(itertools.islice(dataset, steps))
    if isinstance(dataset, tf.data.Dataset):
        dataset = dataset.take(steps).with_options(untuned.options())
        dataset = strategy.experimental_distribute_dataset(dataset)
    with strategy.scope(), _restored_on_failure(layers), _Watch(layers) as watch:
        sweep = _sweep(model, dataset, steps, strategy, watch)
        rows = sweep()
        turns = _turns(watch.calls)
        for done, layer in enumerate(turns, 1):
            _assign(layer, rows, watch.calls)
            if on_progress is not None:
                on_progress(done, len(turns))
            if done < len(turns):
                rows = sweep()


def _measurable(model: keras.Model) -> list[keras.layers.Layer]:
    layers = normalizers(model)
    measurable = [layer for layer in layers if layer.built and layer.trainable]
    if not measurable:
        frozen = f"all {len(layers)} are frozen or not built" if layers else "it has none"
        raise UserError(
            f"The model {model.name!r} has no normalizer with moving statistics to recalibrate: "
            f"{frozen}. Set trainable=True, or leave the recalibration out."
        )
    return measurable


class _Call(NamedTuple):
    """A call of a normalizer in the traced network, and what its vector is made of."""

    layer: keras.layers.Layer
    sizes: tuple[int, ...]


def _turns(calls: list[_Call]) -> list[keras.layers.Layer]:
    """The layers in the order of their first calls.

    One that is called several times has several turns: its own statistics may reach its own
    inputs, and then only repetition finds the ones that agree with themselves.
    """
    times = collections.Counter(call.layer for call in calls)
    return [layer for layer in times for _ in range(1 if times[layer] == 1 else _ROUNDS_OF_SHARED)]


class _Watch:
    """While it is entered, every call of the layers leaves its input's moments behind.

    Replicas of a MirroredStrategy are traced in threads of their own, so each thread has its list.
    """

    def __init__(self, layers: list[keras.layers.Layer]) -> None:
        self._taps = tapped(layers, self._tap)
        self._local = threading.local()
        self.calls: list[_Call] = []

    def __enter__(self) -> "_Watch":
        self._taps.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._taps.__exit__(*error)

    def moments(self, model: keras.Model, inputs: Any, may_be_empty: bool) -> tf.Tensor:
        """All calls' moments in one vector, one call after the other; zeros for an empty batch."""
        self._local.records = []
        if may_be_empty:
            # TensorFlow's own kernels do not all take an empty batch.
            is_empty = tf.equal(tf.shape(tf.nest.flatten(inputs)[0])[0], 0)
            inputs = tf.nest.map_structure(lambda x: _one_row_if(is_empty, x), inputs)
        model(inputs, training=False)
        records = self._local.records
        self.calls = [_Call(layer, tuple(v.shape[0] for v in parts)) for layer, parts in records]
        moments = tf.concat([part for _, parts in records for part in parts], 0)
        return tf.where(is_empty, tf.zeros_like(moments), moments) if may_be_empty else moments

    def _tap(self, layer: keras.layers.Layer, given: Mapping[str, Any], outputs: Any) -> Any:
        own = _moments(layer, *normalized(layer, given))
        self._local.records.append((layer, [*own, *_previous(given.get("previous"))]))
        return outputs


def _one_row_if(is_empty: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return tf.cond(is_empty, lambda: tf.zeros([1, *x.shape[1:]], x.dtype), lambda: x)


def _moments(layer: keras.layers.Layer, x: tf.Tensor, mask: tf.Tensor | None) -> list[tf.Tensor]:
    """Count [1], mean [C] and variance [C] of the valid positions."""
    view = View(x, layer.axis)
    x, mask = view.flatten(x), view.flatten_mask(mask)
    own = suited(x, mask).moments(x, mask, epsilon=layer.epsilon)
    return [tf.cast(tf.reshape(own.count, [1]), own.mean.dtype), own.mean[0], own.variance[0]]


def _previous(state: tuple[tf.Tensor, ...] | None) -> list[tf.Tensor]:
    """Mean [C'], variance [C'] and process noise [1] of a Kalman normalizer's state."""
    if state is None:
        return []
    mean, covariance, noise = state
    if covariance.shape.rank == 3:
        covariance = tf.linalg.diag_part(covariance)
    return [mean[0], covariance[0], tf.reshape(noise, [1])]


def _sweep(
    model: keras.Model,
    dataset: Iterable,
    steps: int,
    strategy: tf.distribute.Strategy,
    watch: _Watch,
) -> Callable[[], np.ndarray]:
    """A function that returns the vectors of all batches and replicas, [steps · replicas, n]."""

    def on_replica(batch: Any) -> tf.Tensor:
        inputs = batch[0] if isinstance(batch, tuple) else batch
        return gather(watch.moments(model, inputs, strategy.num_replicas_in_sync > 1))

    @tf.function(reduce_retracing=True)
    def on_batch(batch: Any) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(on_replica, (batch,)))[0]

    def sweep() -> np.ndarray:
        rows = [on_batch(batch).numpy() for batch in itertools.islice(iterate(dataset), steps)]
        if not rows:
            raise UserError("The data set is empty. Give one with at least one batch.")
        return np.concatenate(rows).astype(np.float64)

    return sweep


def _assign(layer: keras.layers.Layer, rows: np.ndarray, calls: list[_Call]) -> None:
    """Merges the moments of all calls of the layer; keeps what it has if no position was valid."""
    start, counts, means, variances, previous = 0, [], [], [], None
    for call in calls:
        size = sum(call.sizes)
        if call.layer is layer:
            parts = np.split(rows[:, start : start + size], np.cumsum(call.sizes)[:-1], axis=1)
            count, mean, variance, *state = parts
            counts.append(count)
            means.append(mean)
            variances.append(variance)
            previous = [part[0] for part in state] or None
        start += size
    count, mean, variance = map(np.concatenate, (counts, means, variances))
    if not count.sum():
        return
    weight = count / count.sum()
    # A row without a valid position has no moments; its weight is 0.
    mean, variance = (np.where(count > 0, x, 0) for x in (mean, variance))
    center = (weight * mean).sum(0)
    spread = (weight * (variance + np.square(mean - center))).sum(0)
    if not (np.isfinite(center).all() and np.isfinite(spread).all()):
        raise Diverged(
            f"the inputs of the normalizer {layer.path!r} are not finite in the batches to "
            "recalibrate on; all statistics are as they were. Look for examples that are NaN, "
            "infinite or too large to be squared"
        )
    center, spread = method_of(layer).population_statistics(center, spread, previous)
    layer.moving_mean.assign(center)
    layer.moving_variance.assign(spread)


@contextlib.contextmanager
def _restored_on_failure(layers: list[keras.layers.Layer]) -> Iterator[None]:
    variables = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    values = [keras.ops.convert_to_numpy(v) for v in variables]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, values):
            variable.assign(value)
        raise
