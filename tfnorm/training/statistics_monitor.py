"""A Keras callback that watches the batch statistics of normalizers over training."""

import collections
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.data import untuned
from tfnorm.errors import UserError, check_whole, one_line
from tfnorm.graph import layers_below
from tfnorm.layers import norms
from tfnorm.layers.batch_method import method_of
from tfnorm.tasks import Task
from tfnorm.training import statistics
from tfnorm.training.callbacks import write_scalar
from tfnorm.training.notices import Notice, to_stderr
from tfnorm.training.statistics import Statistics
from tfnorm.training.tapping import normalizers
from tfnorm.training.training_pass import Loss, TrainingPass, groups

# The error of the gradients is at most √(2/n) with n images in a batch, and about that where the
# gradient is the same all over an image, as before a global pooling. A third is it at 18 images:
# bn does well with 16 or 32 and not with 8 or less. (ResNet-14 on fashion_mnist, last layer: 0.16
# with 32 images, 0.27 with 16, 0.37 with 8, 0.65 with 2.)
NOISE_LIMIT = 1 / 3

_MEASURED = (*statistics.NAMES, "noise")
_CONSTANT = 1e8  # A channel's variance in units of the data's from which on it counts as constant.


class StatisticsMonitor(keras.callbacks.Callback):
    """Measures batch statistics, forward and backward, and warns where they are mostly noise.

    Every `every` steps it calls the model as in training, forward and backward, on images of its
    own, with the present weights, in batches of the size in use. Of each watched normalizer it
    takes μ_B, σ²_B (of MABN χ²_B), g_B and Ψ_B (see `tfnorm.training.statistics`; L is the mean
    loss of a training step) of every micro-batch and of all of them together, and what the
    normalizer keeps as averages. No Keras variable of the model changes, so the training is, bit
    for bit, the one without the callback; steps that are not due cost nothing.

    It is for `tfnorm.training.train(config, callbacks=[...])`, which makes up to steps_per_loop
    steps before it calls back, so that the weights may be those of so many steps later, and for
    `Model.fit`, which calls back once for all of steps_per_execution: it then measures after the
    execution in which it is due. Steps are counted on from one `fit` to the next.

    Source: Yan et al. 2020, section 3.2 and figures 2 to 4.

    Args:
        data: Images that are typical of training, always the same: a pair (inputs, labels) of
            arrays, or a tf.data.Dataset of batches of such pairs, of which the first are taken. In
            a run of `tfnorm.training.train`, labels are the one entry of an example beside its
            image that the task needs (`label` or `mask`), or a mapping of entries.
        batch_size: Images of a training step, over all replicas.
        every: Steps from one measurement to the next.
        layers: Names of normalizers, or how many of them, spread over the depth of the network, of
            those that are trained, if any is: what is frozen sees no batch statistics. One in a
            block whose name another block has too is named by its path, "block1/norm".
        large_batch: Images to compare with, at least two micro-batches.
        loss: From (labels, outputs) to a mean over the images or one a image. None is that of the
            task in a run of `tfnorm.training.train`; in Keras' fit that the model was compiled
            with, and the cross-entropy of sparse labels and logits for a model without one.
        directory: Of scalars for TensorBoard, in its subdirectory statistics; None for none.
        notice: Called with a line, once a layer, where its statistics are too noisy for the norm in
            use, which averages them or not: where the error of the normalized values or of their
            gradients exceeds a third of their standard deviation (`NOISE_LIMIT`), or they are not
            finite, both unless it is frozen; and where moving variances are so large that
            inference makes a channel constant.
        keep_rows: Most rows of the history; the oldest go first.

    Attributes:
        history: One row a measurement and layer: step, layer, norm, images (of a micro-batch),
            large_images (of all of them), for each of mean, variance, gradient and gradient_product
            the l2 norms over channels `batch` (of a micro-batch, each time another), `step` (of
            the micro-batches of a replica's step together, where these are several), `large` and,
            where the norm keeps them, `moving` and `window`; and noise, the fields of
            `tfnorm.training.statistics.Noise` with forward and backward.

    Raises:
        UserError: An argument is none of these, or, raised after the first step, the model has no
            such layer or there is too little data.
    """

    def __init__(
        self,
        data: tf.data.Dataset | tuple[Any, Any],
        batch_size: int,
        every: int = 100,
        layers: int | Sequence[str] = 3,
        large_batch: int = 256,
        loss: Loss | None = None,
        directory: str | os.PathLike[str] | None = None,
        notice: Notice = to_stderr,
        keep_rows: int = 10_000,
    ) -> None:
        super().__init__()
        limits = {"batch_size": batch_size, "every": every, "large_batch": large_batch}
        for name, value in {**limits, "keep_rows": keep_rows}.items():
            check_whole(name, value)
        layers = [layers] if isinstance(layers, str) else layers
        if isinstance(layers, bool) or not isinstance(layers, (numbers.Integral, Sequence)):
            raise UserError(f"layers must be a number of layers or their names, received {layers}")
        _check_data(data)
        self._data, self._batch_size, self._every = data, batch_size, every
        self._chosen, self._large_batch, self._loss = layers, large_batch, loss
        self._directory, self._notice = directory, notice
        self._step = self._first = self._before = self._measured = 0
        self._is_begun = False
        self._watched: tuple[Any, ...] = ()
        self._layers: list[keras.layers.Layer] = []
        self._names: dict[keras.layers.Layer, str] = {}
        self._writer = None
        self._keep_rows = keep_rows
        self._warned: set[str] = set()
        self._told_constant: set[str] = set()
        self.history: list[dict[str, Any]] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Notes that the model may be another one, and that steps may be counted from 0 again."""
        self._is_begun = False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Notes where the epoch begins, also in a run that was resumed."""
        steps = self.params.get("steps")
        self._first = self._before + epoch * steps if steps else self._step
        if not self._is_begun and self._first < self._step and "task" not in self.params:
            # The next `fit`. A run of `tfnorm.training.train` goes back to where it was resumed.
            self._before += self._step - self._first
            self._first = self._step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Measures if it is due."""
        if not self._is_begun:
            self._prepare()
            self._is_begun = True
        # Keras counts an epoch's last execution in full, though it may be of fewer steps.
        done = min(batch + 1, self.params.get("steps") or batch + 1)
        last, self._step = max(self._first, self._step), self._first + done
        # A run of `tfnorm.training.train` calls back for each step, and may begin within an epoch.
        before = self._step - 1 if "task" in self.params else min(last, self._step - 1)
        if self._step // self._every > before // self._every:
            self._measure()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _prepare(self) -> None:
        """Chooses layers and takes images: not before a step, that a model may be built by it."""
        chosen = _choose(self.model, self._chosen)
        is_trained = [layer.trainable for layer in self.model._flatten_layers()]
        watched = self.model, getattr(self.model, "loss", None), [*chosen.values()], is_trained
        if watched == self._watched:
            return
        self._watched = watched
        self._names = {layer: name for name, layer in chosen.items()}
        self._layers = [*chosen.values()]
        self._warned, self._told_constant = set(), set()
        task = (self.params or {}).get("task")
        loss = self._loss or (_loss_of_task(task) if task else _loss(self.model))
        self._pass = TrainingPass(self.model, self._layers, loss)
        self._batches = self._take()

    def _take(self) -> list[tuple[Any, Any]]:
        strategy = getattr(self._layers[0].moving_mean.value, "distribute_strategy", None)
        replicas = strategy.num_replicas_in_sync if strategy else 1
        is_whole = all(getattr(layer, "synchronized", False) for layer in self._layers)
        images = self._batch_size if is_whole else self._batch_size // replicas
        least = 1 if min(map(groups, self._layers)) > 1 else 2
        count = max(math.ceil(self._large_batch / max(images, 1)), least)
        rows = self._data
        if isinstance(rows, tf.data.Dataset):
            rows = rows.unbatch()
        else:
            try:
                rows = tf.data.Dataset.from_tensor_slices(tuple(rows[:2]))
            except (TypeError, ValueError) as error:
                raise UserError(
                    "StatisticsMonitor needs data of as many labels as images, received others: "
                    f"{one_line(error)}"
                ) from error
        rows = rows.take(count * images).batch(images, drop_remainder=True)
        rows = rows.with_options(untuned.options())
        batches = [batch[:2] for batch in rows] if images else []
        if len(batches) * min(map(groups, self._layers)) < 2:
            raise UserError(
                f"StatisticsMonitor needs data of at least two micro-batches ({images} images on a "
                f"replica, of batch_size={self._batch_size}), received {len(batches)} whole "
                "batches; give it more"
            )
        return batches

    def _measure(self) -> None:
        found = [self._pass.statistics(*batch) for batch in self._batches]
        # A run that was resumed from before its last measurement makes it again.
        self.history[:] = [row for row in self.history if row["step"] < self._step]
        for layer, *parts in zip(self._layers, *found):
            parts = Statistics(*map(np.concatenate, zip(*parts)))
            row = self._row(layer, _per_step(parts, self._batch_size))
            self.history.append(row)
            self._write(row)
            self._tell_constant(layer, row["step"], statistics.merge(parts))
            self._warn(layer, row)
        del self.history[: -self._keep_rows]
        self._measured += 1

    def _row(self, layer: keras.layers.Layer, parts: Statistics) -> dict[str, Any]:
        large = statistics.merge(parts)
        samples = self._samples(layer, parts) | {"large": large}
        subtracts_mean = method_of(layer).subtracts_mean
        if not subtracts_mean:
            samples = {key: statistics.about_zero(sample) for key, sample in samples.items()}
            parts, large = map(statistics.about_zero, (parts, large))
        noise = statistics.noise(parts, large, layer.epsilon)
        if not subtracts_mean:
            noise = noise._replace(mean=0.0, gradient=0.0)
        images = len(tf.nest.flatten(self._batches[0])[0])
        row = {
            "step": self._step,
            "layer": self._names[layer],
            "norm": norms.name_of(layer) or type(layer).__name__,
            "images": images // groups(layer),
            "large_images": images * len(self._batches),
        }
        averages = _averages(layer, self._measured)
        for name in statistics.NAMES:
            values = {key: getattr(sample, name) for key, sample in samples.items()}
            values |= averages.get(name, {})
            row[name] = {key: float(np.linalg.norm(value)) for key, value in values.items()}
        row["noise"] = {
            **noise._asdict(), "forward": noise.forward, "backward": noise.backward
        }  # fmt: skip
        return row

    def _samples(self, layer: keras.layers.Layer, parts: Statistics) -> dict[str, Statistics]:
        """Of one micro-batch, each time of the next, and of the batch that it is a part of."""
        size, turn = groups(layer), self._measured % len(parts.count)

        def rows(start: int, stop: int) -> Statistics:
            return Statistics(*(values[start:stop] for values in parts))

        samples = {"batch": rows(turn, turn + 1)}
        if size > 1:
            whole = turn // size * size
            samples["step"] = statistics.merge(rows(whole, whole + size))
        return samples

    def _write(self, row: dict[str, Any]) -> None:
        if self._directory is None:
            return
        if self._writer is None:
            directory = os.path.join(self._directory, "statistics")
            self._writer = tf.summary.create_file_writer(directory)
        for name in _MEASURED:
            for key, value in row[name].items():
                write_scalar(self._writer, f"{row['layer']}/{name}/{key}", value, row["step"])
        self._writer.flush()

    def _tell_constant(self, layer: keras.layers.Layer, step: int, large: Statistics) -> None:
        """Says once a layer if inference would make channels of it constant."""
        variance = keras.ops.convert_to_numpy(layer.moving_variance).astype(np.float64)
        limit = _CONSTANT * np.maximum(large.variance[0], 1.0)
        channels = int(np.sum(~(variance <= limit) & np.isfinite(limit)))
        name = self._names[layer]
        if channels and name not in self._told_constant:
            self._told_constant.add(name)
            self._notice(
                f"the moving variance of layer {name!r} is not finite, or more than "
                f"{_CONSTANT:.0e} times that of the data, in {channels} of {len(variance)} "
                f"channels at step {step}: inference makes them constant; train on, or "
                "tfnorm.recalibrate the model"
            )

    def _warn(self, layer: keras.layers.Layer, row: dict[str, Any]) -> None:
        watched = row["layer"]
        if watched in self._warned or not layer.trainable:
            return
        if not all(math.isfinite(value) for name in _MEASURED for value in row[name].values()):
            self._warned.add(watched)
            self._notice(
                f"the statistics of layer {watched!r} are not finite at step {row['step']}: the "
                "run has diverged; a lower learning rate may help"
            )
            return
        steps = method_of(layer).averaged_steps()
        forward, backward = (
            row["noise"][name] / math.sqrt(getattr(steps, name)) for name in steps._fields
        )
        worst = max(forward, backward)
        if worst <= NOISE_LIMIT:
            return
        self._warned.add(watched)
        images = math.ceil(row["images"] * (worst / NOISE_LIMIT) ** 2)
        advice = (norms.entry_of(layer) or norms.Normalizer).advice
        self._notice(
            f"the batch statistics of layer {watched!r} are too noisy for {row['norm']}: at "
            f"step {row['step']}, with {row['images']} images in a batch, they put normalized "
            f"values off by {forward:.2f} and gradients by {backward:.2f} of their standard "
            f"deviation (limit {NOISE_LIMIT:.2f}). About {images} images would do; else try "
            f"{advice}"
        )


def spread(layers: Sequence[Any], count: int) -> list[Any]:
    """So many of the layers, from the first to the last; a single one is that in the middle."""
    if count == 1:
        return [layers[len(layers) // 2]]
    places = np.linspace(0, len(layers) - 1, min(count, len(layers)))
    return [layers[round(place)] for place in places]


def _choose(model: keras.Model, chosen: int | Sequence[str]) -> dict[str, keras.layers.Layer]:
    known = _named(model)
    if isinstance(chosen, numbers.Integral):
        if not known or chosen < 1:
            raise UserError(
                f"StatisticsMonitor has no layer to watch: layers={chosen}, and the model "
                f"{model.name!r} has {len(known)} normalizers of batches"
            )
        trained = [(name, layer) for name, layer in known.items() if layer.trainable]
        return dict(spread(trained or [*known.items()], chosen))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise UserError(
            f"the model {model.name!r} has no normalizer of batches "
            f"{', '.join(map(repr, unknown)) or 'in an empty list'}; known: {', '.join(known)}"
        )
    return {name: known[name] for name in chosen}


def _named(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The normalizers by their names; by their paths where layers of blocks share a name."""
    found = normalizers(model)
    counts = collections.Counter(layer.name for layer in found)
    paths = {layer: path for path, layer in layers_below(model)}
    return {x.name if counts[x.name] == 1 else paths[x]: x for x in found}


def _loss_of_task(task: Task) -> Loss:
    """The task's loss of what `data` has for labels."""
    others = [entry for entry in task.needed if entry != "image"]

    def loss(labels: Any, outputs: Any) -> tf.Tensor:
        if not isinstance(labels, Mapping):
            if len(others) != 1:
                raise UserError(
                    f"StatisticsMonitor needs {' and '.join(others)} of each image; give it data "
                    "of pairs (image, mapping with these names)"
                )
            labels = {others[0]: labels}
        return task.losses(outputs, labels)

    return loss


def _check_data(data: Any) -> None:
    is_dataset = isinstance(data, tf.data.Dataset)
    parts = data.element_spec if is_dataset else data
    received = f"{'a dataset of ' if is_dataset else ''}{type(parts).__name__}"
    if isinstance(parts, (tuple, list)) and len(parts) > 1:
        specs = tf.nest.flatten(parts[:2])
        if not is_dataset or all(getattr(v, "shape", tf.TensorShape([])).rank for v in specs):
            return
        received = "a dataset that is not batched, or without labels"
    raise UserError(
        "StatisticsMonitor needs data of images and labels, a pair of arrays or a tf.data.Dataset "
        f"of batches of such pairs, received {received}"
    )


def _loss(model: keras.Model) -> Loss:
    compiled = getattr(model, "loss", None)
    if isinstance(compiled, (list, tuple)) and len(compiled) == 1:
        (compiled,) = compiled
    if compiled is None:
        return tf.nn.sparse_softmax_cross_entropy_with_logits
    if isinstance(compiled, (list, tuple, dict)):
        raise UserError(
            f"the model {model.name!r} has several losses; give StatisticsMonitor one function as "
            "loss, from (labels, outputs)"
        )
    return keras.losses.get(compiled)


def _per_step(parts: Statistics, images: int) -> Statistics:
    """With L the mean over the images of a step, in place of the sum."""
    return parts._replace(
        gradient=parts.gradient / images,
        gradient_product=parts.gradient_product / images,
        gradient_square=parts.gradient_square / images**2,
    )


def _averages(layer: keras.layers.Layer, turn: int) -> dict[str, dict[str, np.ndarray]]:
    """What a normalizer keeps: moving statistics, and averages over steps of one group, in turn."""
    mean, variance = (
        {"moving": keras.ops.convert_to_numpy(v)}
        for v in (layer.moving_mean, layer.moving_variance)
    )
    found = {"mean": mean, "variance": variance}
    for name, average in method_of(layer).step_averages(turn % groups(layer)).items():
        found.setdefault(name, {})["window"] = average
    return found
