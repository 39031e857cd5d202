"""Everything that decides the outcome of a training run, as one value."""

import contextlib
import dataclasses
import math
import numbers
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfnorm import data, models, tasks
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.training import options
from tfnorm.training.learning_rate import SCHEDULES
from tfnorm.training.optimizer import OPTIMIZERS

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")

_CHOICES = {
    "task": tasks.TASKS,
    "norm": norms.NAMES,
    "augment": tuple(data.AUGMENTATIONS),
    "data_loading": data.LOADINGS,
    "sampling": tuple(data.SAMPLINGS),
    "distribution_strategy": STRATEGIES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "mixed_precision": POLICIES,
}
_OF_THE_NETWORK = ("width", "stem_stride")
_POSITIVE = (
    "virtual_replicas", "replica_batch_size", "accumulate_steps", "epochs", "learning_rate",
    "steps_per_loop", "evaluation_batch_size", "worker_timeout",
)  # fmt: skip
_NOT_NEGATIVE = (
    "num_replicas", "train_examples", "steps", "reference_batch_size", "warmup_epochs",
    "weight_decay", "momentum", "seed", "checkpoint_every", "label_smoothing", "ema_decay",
    "max_objects",
)  # fmt: skip

_ANY_WIDTH = 64  # Channels of the layer that is made to see whether it takes its options.
_LARGEST = 2**31 - 1  # TensorFlow counts in int32.
_LARGEST_FLOAT = 2.0**127  # It computes in float32, which goes a little further.
_LARGEST_OF = {"seed": 2**32 - 1}
_KINDS = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "true or false"),
    Mapping: (Mapping, "a mapping from names to values"),
}


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


def _mapping(help: str) -> Any:
    return dataclasses.field(default_factory=dict, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. Every field is a flag of `python -m tfnorm.train`, with this help.

    Raises:
        UserError: A name is unknown or a number impossible.
    """

    task: str = _field("classification", f"What is trained for: {', '.join(tasks.TASKS)}.")
    model: str | None = _field(
        None,
        f"Network: {', '.join(models.NAMES)}. By default a small one of the task: "
        f"{', '.join(task.defaults.model for task in tasks.TASKS.values())}.",
    )
    width: int | None = _field(
        None, "Channels of the network's first stage; by default the network's own."
    )
    stem_stride: int | None = _field(
        None, "Stride of the first convolution; by default the network's own."
    )
    backbone: str | None = _field(
        None,
        f"What the network stands on: {', '.join(models.BACKBONE_NAMES)}; by default the network's "
        "own choice.",
    )
    model_options: Mapping[str, Any] = _mapping(
        "More arguments of the network and its backbone, as name=value,name=value, such as "
        "head_width=128."
    )
    weights: str | None = _field(
        None,
        "What the backbone starts with: imagenet or a file of weights for a network of "
        "keras.applications, preset for one of KerasHub, a .keras file, or the --model_dir of "
        "another run on the same backbone. By default random weights.",
    )
    freeze: str | None = _field(
        None,
        "Layers whose names match this regular expression are not trained; normalizers infer.",
    )
    norm: str = _field("bn", f"Normalizer: {', '.join(norms.NAMES)}.")
    norm_options: Mapping[str, Any] = _mapping(
        "Arguments of the normalizer, as name=value,name=value; a schedule is written as "
        "r_max=ramp(1,3,200,1600): 1 until step 200, 3 from step 1600, a straight line between. "
        "What is not given and depends on the length of the run follows from it, and is printed."
    )
    backbone_norm: str | None = _field(
        None,
        "Normalizer of the backbone, if it is another: frozen (bn that infers with the statistics "
        "of its weights), or a name as of --norm.",
    )
    virtual_replicas: int = _field(
        1, "Groups of a replica's batch that are normalized as if each were a replica."
    )
    dataset: str | None = _field(
        None,
        "TFDS name of an image data set; by default one of the task that is embedded: "
        f"{', '.join(dict.fromkeys(t.defaults.dataset for t in tasks.TASKS.values()))}.",
    )
    data_dir: str | None = _field(None, "Directory of prepared TFDS data sets (TFDS' default).")
    train_split: str | None = _field(
        None, "What to train on, a TFDS split expression such as 'train[:80%]'; default: train."
    )
    test_split: str | None = _field(
        None,
        "What to evaluate on, such as 'train[80%:]'; default: test, else validation.",
    )
    data_loading: str = _field(
        "auto",
        "memory: images of one size, decoded once. stream: any images, read when they are needed. "
        "auto: memory where that fits comfortably.",
    )
    image_size: str | None = _field(
        None, "H,W of the images that the network takes; default: the data set's, if that is one."
    )
    max_objects: int = _field(
        0,
        "Rows for objects in every example; 0 is as many as an image has at most, which is counted "
        "once.",
    )
    skip_undecodable: bool = _field(
        False, "Look for images that cannot be decoded at the start and leave them out."
    )
    train_examples: int = _field(0, "Use only so many training images; 0 is all.")
    augment: str = _field("none", f"Augmentation: {', '.join(data.AUGMENTATIONS)}.")
    sampling: str = _field(
        "shuffled",
        f"How images come together: {', '.join(data.SAMPLINGS)} (pairs of a class, or all images "
        "that share statistics of one class).",
    )
    distribution_strategy: str = _field(
        "one_device", f"tf.distribute strategy: {', '.join(STRATEGIES)}."
    )
    tpu: str = _field(
        "",
        "Trains on this TPU (--distribution_strategy=tpu): local, a name, or a grpc address such "
        "as grpc://10.0.0.2:8470.",
    )
    num_replicas: int = _field(
        0, "Replicas (of each worker); more than one needs mirrored. 0 is every GPU, else one CPU."
    )
    worker_timeout: float = _field(
        1800.0, "Seconds to wait for the other workers (multi_worker_mirrored) to start."
    )
    replica_batch_size: int = _field(
        32, "Images of one replica in one step, or in one of its --accumulate_steps."
    )
    accumulate_steps: int = _field(
        1,
        "Micro-batches of --replica_batch_size whose gradients make one step of the optimizer; to "
        "normalizers each is a step of its own.",
    )
    epochs: int = _field(20, "Passes over the training images.")
    steps: int = _field(0, "Training steps; if not 0 it takes the place of --epochs.")
    learning_rate: float = _field(
        0.1, "Peak learning rate for a global batch of --reference_batch_size."
    )
    reference_batch_size: int = _field(
        32,
        "The peak learning rate is scaled by (global batch / this), the linear scaling rule; "
        "0 is no scaling.",
    )
    optimizer: str = _field(
        "momentum", f"Keras' optimizer: {', '.join(OPTIMIZERS)} (momentum is SGD)."
    )
    optimizer_options: Mapping[str, Any] = _mapping(
        "More arguments of the optimizer, as name=value,name=value, such as rho=0.9,epsilon=1."
    )
    schedule: str = _field(
        "cosine",
        "cosine to zero, polynomial to zero (power 0.9), or step: a tenth at each of "
        "--schedule_drops.",
    )
    schedule_drops: str = _field(
        "0.5,0.75", "Parts of the run after which the learning rate of --schedule=step drops."
    )
    warmup_epochs: float = _field(1.0, "Epochs in which the learning rate rises linearly from 0.")
    momentum: float = _field(0.9, "Momentum of SGD and RMSprop; beta_1 of AdamW.")
    weight_decay: float = _field(
        1e-4,
        "L2 penalty of the kernels, weight_decay/2 · |w|², part of the gradient (as SGD with "
        "momentum has it in the literature) and not of the loss that is shown; with AdamW its own "
        "decay of the kernels.",
    )
    label_smoothing: float = _field(
        0.0, "Part of the label that is spread evenly over all classes (Szegedy et al. 2016)."
    )
    ema_decay: float = _field(
        0.0,
        "Averages all weights, moving statistics included, over the steps: avg = d·avg + (1 - d)·w "
        "with d this, less in the first steps. The run is evaluated and exported with them. 0 is "
        "without.",
    )
    seed: int = _field(0, "Decides initial weights, order of the images and augmentation.")
    mixed_precision: str = _field("float32", f"Keras dtype policy: {', '.join(POLICIES)}.")
    steps_per_loop: int = _field(50, "Most steps inside one call of a tf.function.")
    evaluation_batch_size: int = _field(128, "Most images of one replica in a step of evaluation.")
    checkpoint_every: int = _field(0, "Steps between checkpoints; 0 is at the end of each epoch.")
    resume: bool = _field(True, "Go on from the newest checkpoint in --model_dir, if there is one.")
    model_dir: str | None = _field(
        None, "Directory of checkpoints, logs (TensorBoard, CSV) and results."
    )

    def __post_init__(self) -> None:
        _make_plain(self)
        _check_types(self)
        self._take_defaults_of_the_task()
        self._take_options_of_the_network()
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"unknown {name} '{value}'; known: {', '.join(known)}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, received {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or above, received {getattr(self, name)}")
        _check_limits(self)
        if self.momentum >= 1:
            raise UserError(f"momentum must be below 1, received {self.momentum}")
        if self.replica_batch_size % self.virtual_replicas:
            raise UserError(
                f"replica_batch_size={self.replica_batch_size} is not divisible by "
                f"virtual_replicas={self.virtual_replicas}; choose a multiple"
            )
        if self.tpu and self.distribution_strategy != "tpu":
            raise UserError(
                f"tpu='{self.tpu}' with distribution_strategy={self.distribution_strategy}; "
                "choose --distribution_strategy=tpu, or leave --tpu out"
            )
        if self.distribution_strategy == "one_device" and self.num_replicas > 1:
            raise UserError(
                f"num_replicas={self.num_replicas} with distribution_strategy=one_device; "
                "choose --distribution_strategy=mirrored"
            )
        if self.sampling == "pairs" and self.statistics_batch_size % 2:
            raise UserError(
                "sampling=pairs needs an even number of images that share statistics, received "
                f"{self.statistics_batch_size} (replica_batch_size / virtual_replicas)"
            )
        for name in ("label_smoothing", "ema_decay"):
            if getattr(self, name) >= 1:
                raise UserError(f"{name} must be below 1, received {getattr(self, name)}")
        self.backbone_normalizer()
        self.drops()
        if self.freeze is not None:
            try:
                re.compile(self.freeze)
            except re.error as error:
                raise UserError(
                    f"freeze='{self.freeze}' is no regular expression: {error}"
                ) from None
        self._check_norm_options()

    def _check_norm_options(self) -> None:
        """Makes the layer once, where the user says how."""
        options = self.norm_options
        strange = [key for key in options if not isinstance(key, str)]
        if strange:
            raise UserError(f"norm_options must have names, received {strange[0]!r:.50} for one")
        groups = options.get("virtual_replicas", self.virtual_replicas)
        if groups != self.virtual_replicas:
            raise UserError(
                f"norm_options has virtual_replicas={groups}, and virtual_replicas is "
                f"{self.virtual_replicas}; give --virtual_replicas alone"
            )
        norm = self.normalizer()
        if options:
            with options_told(self):
                norm.make(_ANY_WIDTH)

    def _take_defaults_of_the_task(self) -> None:
        """What is open becomes the task's own choice."""
        defaults = tasks.get(self.task).defaults
        if self.dataset is None:
            object.__setattr__(self, "dataset", defaults.dataset)
        if self.model is None:
            object.__setattr__(self, "model", defaults.model)
            if self.backbone is None:
                object.__setattr__(self, "backbone", defaults.backbone)
            options = {**defaults.model_options, **self.model_options}
            object.__setattr__(self, "model_options", options)

    def _take_options_of_the_network(self) -> None:
        """Checks the model and the options meant for it; those that are open become its own."""
        if self.model not in models.NAMES and not self.model.startswith("hub:"):
            raise UserError(f"unknown model '{self.model}'; known: {', '.join(models.NAMES)}")
        fits, fitting = models.network(self.model).task, models.names_of(self.task)
        if fitting and fits != self.task:  # A task of the user's may build its networks itself.
            raise UserError(
                f"model '{self.model}' is for --task={fits} and not for --task={self.task}, which "
                f"takes {', '.join(fitting)}"
            )
        own = models.options_of(self.model, self.backbone)
        unknown = sorted(set(self.model_options) - set(own))
        if unknown:
            raise UserError(
                f"model '{self.model}' does not take {', '.join(unknown)}; it takes "
                f"{', '.join(own) or 'no options'}"
            )
        if not self.model.startswith("hub:"):
            for name, value in self.model_options.items():
                _check_option_of_network(self.model, name, value, own[name])
        for name in _OF_THE_NETWORK:
            if name in self.model_options:
                raise UserError(
                    f"model_options has {name}={self.model_options[name]}; give --{name} in its "
                    "place"
                )
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, own.get(name))
            elif name not in own:
                raise UserError(
                    f"model '{self.model}' does not take {name}; it takes "
                    f"{', '.join(own) or 'no options'}"
                )
            elif not value > 0:
                raise UserError(f"{name} must be above 0, received {value}")

    @property
    def statistics_batch_size(self) -> int:
        """Images that a normalizer of batches takes its statistics from."""
        return self.replica_batch_size // self.virtual_replicas

    def options_of_run(self, steps: int, planned: int | None = None) -> dict[str, Any]:
        """Options of the normalizer that follow from the run, and are not given.

        Args:
            steps: how often it will be called in training.
            planned: how often it was to be when the run began, as of `Progress.planned_calls`.
        """
        advised = _advised(self.norm, steps, planned)
        return {name: value for name, value in advised.items() if name not in self.norm_options}

    def normalizer(self, steps: int | None = None, planned: int | None = None) -> norms.Normalizer:
        """The normalizer of the run.

        Those of single examples are the same however the batch is grouped; only those of a batch
        get `virtual_replicas`.

        Args:
            steps: How often it will be called in training, from which some of its options follow;
                None leaves these to the layer.
            planned: As of `options_of_run`.
        """
        options = dict(self.norm_options)
        if steps is not None:
            options |= self.options_of_run(steps, planned)
        return self._grouped(self.norm, options)

    def backbone_normalizer(
        self, steps: int | None = None, planned: int | None = None
    ) -> norms.Normalizer | None:
        """The normalizer of the backbone, if that is another one; arguments as of `normalizer`."""
        if self.backbone_norm is None:
            return None
        if self.backbone_norm == "frozen":
            return models.frozen(norms.get("bn"))
        options = {} if steps is None else _advised(self.backbone_norm, steps, planned)
        return self._grouped(self.backbone_norm, options)

    def _grouped(self, name: str, options: Mapping[str, Any]) -> norms.Normalizer:
        if self.virtual_replicas > 1 and norms.get(name).takes_batch_statistics:
            options = {**options, "virtual_replicas": self.virtual_replicas}
        return norms.get(name, **options)

    def drops(self) -> tuple[float, ...]:
        """The parts of the run in --schedule_drops."""
        try:
            parts = tuple(float(part) for part in self.schedule_drops.split(",") if part.strip())
        except ValueError:
            parts = (math.nan,)
        if not all(0 < part < 1 for part in parts) or list(parts) != sorted({*parts}):
            raise UserError(
                f"schedule_drops='{self.schedule_drops}' are not rising numbers between 0 and 1, "
                "as in --schedule_drops=0.3,0.6,0.9"
            )
        return parts

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_dict`; fields that are left out have their defaults.

        Raises:
            UserError: It is no mapping of fields, a field is unknown or its value wrong.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"a config must be a mapping of fields, received {values!r:.50}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(
                f"unknown config field {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(**values)


@contextlib.contextmanager
def options_told(config: Config) -> Iterator[None]:
    """Turns what a layer raises that does not take its options into a UserError of one line."""
    try:
        yield
    except Exception as error:  # Each argument of each layer fails in its own way.
        if isinstance(error, UserError) or not config.norm_options:
            raise
        given = options.in_words(config.norm_options)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"norm '{config.norm}' cannot be made with norm_options {given} ({reason:.300})"
        ) from error


def _kind(hint: Any) -> type:
    """`str` of `str | None`, and `Mapping` of `Mapping[str, Any]`."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return typing.get_origin(kinds[0]) or kinds[0]


_MAY_BE_0 = ("head_convolutions", "output_stride")
_SHARES = ("object_share",)


def _check_option_of_network(model: str, name: str, value: Any, default: Any) -> None:
    """Raises a UserError unless what is a number in the network is one, and large enough.

    A list of numbers has the limits of each.
    """
    if isinstance(default, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            form = ",".join(map(str, default))
            raise UserError(
                f"{name} of model '{model}' must be a list such as [{form}], received {value!r:.50}"
            )
        for each in value:
            _check_option_of_network(model, name, each, default[0])
        return
    if isinstance(default, bool) or not isinstance(default, numbers.Real):
        return
    is_whole = isinstance(default, numbers.Integral)
    least = 0 if name in _MAY_BE_0 else 1
    kind = numbers.Integral if is_whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not (value >= least if is_whole else value > 0):
        wanted = f"a whole number of {least} or more" if is_whole else "a number above 0"
        raise UserError(f"{name} of model '{model}' must be {wanted}, received {value!r:.50}")
    if name in _SHARES and value > 1:
        raise UserError(f"{name} of model '{model}' must be a share of at most 1, received {value}")
    if name == "output_stride" and value & (value - 1):
        raise UserError(
            f"{name} of model '{model}' must be a power of two, or 0 for the network's own, "
            f"received {value}"
        )


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of NumPy and schedules as Python's and as configurations."""
    if isinstance(value, np.generic):
        return value.item()
    if callable(getattr(value, "get_config", None)):
        return keras.saving.serialize_keras_object(value)
    return value


def _make_plain(config: Config) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Mapping):
            value = {name: _plain(each) for name, each in value.items()}
        object.__setattr__(config, field.name, _plain(value))


def _check_types(config: Config) -> None:
    for name, hint in typing.get_type_hints(Config).items():
        value, kind = getattr(config, name), _kind(hint)
        if value is None and isinstance(hint, types.UnionType):
            continue
        accepted, words = _KINDS[kind]
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{name} must be {words}, received {value!r:.50}")


def _check_limits(config: Config) -> None:
    for name, hint in typing.get_type_hints(Config).items():
        value, largest = getattr(config, name), _LARGEST_OF.get(name, _LARGEST)
        if _kind(hint) is float and not math.isfinite(value):
            raise UserError(f"{name} must be finite, received {value}")
        if _kind(hint) is float and value > _LARGEST_FLOAT:
            raise UserError(f"{name} must be at most {_LARGEST_FLOAT:.3g}, received {value}")
        if _kind(hint) is int and value is not None and value > largest:
            raise UserError(f"{name} must be at most {largest}, received {value}")


def _advised(name: str, steps: int, planned: int | None) -> dict[str, Any]:
    """What follows from a normalizer's steps; its window, and its state's shape, from the plan."""
    of_steps = norms.get(name).of_steps
    options = of_steps(steps)
    if planned is None:
        return options
    options.pop("window", None)
    first = of_steps(planned) if planned else {}  # older checkpoints do not say it
    return {**options, "window": first["window"]} if "window" in first else options
