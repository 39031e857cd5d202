"""Random functional models for property-based tests: `plans()` draws one, `plan.model()` builds it.

A plan is plain data, so that Hypothesis prints and shrinks it. Its steps name the tensors they use
by numbers that are taken modulo the tensors there are, so that every plan is a model.
"""

import dataclasses
import itertools

import keras
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tfnorm import layers

# The same examples in every run, whatever the machine.
EXAMPLES = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
L = keras.layers
SHAPES = ((6, 5, 4), (7, 4), (6,))  # of the inputs; a model has one or two


def _window(x, kind_of, **options):
    """A convolution or pooling layer of the rank of x; None where the window is too large."""
    size = options.get("kernel_size") or options.get("pool_size")
    reach = (size - 1) * options.get("dilation_rate", 1) + 1
    if len(x.shape) == 2 or min(x.shape[1:-1]) < reach:
        return None
    return kind_of[len(x.shape) - 3](**options)


CONVOLUTIONS = L.Conv1D, L.Conv2D
TRANSPOSED = L.Conv1DTranspose, L.Conv2DTranspose
DEPTHWISE = L.DepthwiseConv1D, L.DepthwiseConv2D
SEPARABLE = L.SeparableConv1D, L.SeparableConv2D
AVERAGE = L.AveragePooling1D, L.AveragePooling2D
MAXIMUM = L.MaxPooling1D, L.MaxPooling2D


def _of_rank(x, *kinds, **options):
    """A layer of the class for sequences or images, None for vectors."""
    return kinds[len(x.shape) - 3](**options) if len(x.shape) > 2 else None


def _wrapped(wrapper, inner):
    return None if inner is None else wrapper(inner)


def _conv(x, filters=4, kernel_size=3, **options):
    return _window(x, CONVOLUTIONS, filters=filters, kernel_size=kernel_size, **options)


# From a tensor to a new layer for it, or to None where there is no such layer.
LINEAR = {
    "conv": lambda x: _conv(x),
    "conv same": lambda x: _conv(x, padding="same", use_bias=False),
    "conv of 6": lambda x: _conv(x, filters=6, padding="same"),
    "conv causal": lambda x: _conv(x, padding="causal") if len(x.shape) == 3 else None,
    "conv dilated": lambda x: _conv(x, dilation_rate=2),
    "conv strided": lambda x: _conv(x, kernel_size=2, strides=2, padding="same"),
    "conv groups": lambda x: None if x.shape[-1] % 2 else _conv(x, padding="same", groups=2),
    "conv relu": lambda x: _conv(x, kernel_size=1, activation="relu"),
    "pointwise": lambda x: _conv(x, kernel_size=1, padding="same", use_bias=False),
    "transposed": lambda x: _window(x, TRANSPOSED, filters=4, kernel_size=3, padding="same"),
    "depthwise": lambda x: _window(x, DEPTHWISE, kernel_size=3),
    "depthwise same": lambda x: _window(x, DEPTHWISE, kernel_size=3, padding="same"),
    "separable": lambda x: _window(x, SEPARABLE, filters=4, kernel_size=3),
    "dense": lambda x: L.Dense(4),
    "dense tanh": lambda x: L.Dense(4, activation="tanh"),
    "centralized": lambda x: _wrapped(layers.WeightCentralization, _conv(x)),
}
NORMS = {
    "keras bn": lambda x: L.BatchNormalization(),
    "keras bn, no scale": lambda x: L.BatchNormalization(scale=False),
    "keras bn, no center": lambda x: L.BatchNormalization(center=False),
    "keras bn, axis 1": lambda x: L.BatchNormalization(axis=1),
    "bn": lambda x: layers.BatchNormalization(),
    "brn": lambda x: layers.BatchRenormalization(),
    "mabn": lambda x: layers.MovingAverageBatchNormalization(),
    "cbn": lambda x: _wrapped(
        layers.CrossIterationBatchNormalization, _conv(x, padding="same", use_bias=False)
    ),
    "bkn": lambda x: layers.BatchKalmanNormalization(),
    "gn": lambda x: None if x.shape[-1] % 2 else L.GroupNormalization(2),
}
OTHERS = {
    "relu": lambda x: L.ReLU(),
    "tanh": lambda x: L.Activation("tanh"),
    "linear": lambda x: L.Activation("linear"),
    "identity": lambda x: L.Identity(),
    "dropout": lambda x: L.Dropout(0.3),
    "average": lambda x: _window(x, AVERAGE, pool_size=2, strides=1, padding="same"),
    "average to half": lambda x: _window(x, AVERAGE, pool_size=2),
    "maximum": lambda x: _window(x, MAXIMUM, pool_size=2, strides=1, padding="same"),
    "zero padding": lambda x: _of_rank(x, L.ZeroPadding1D, L.ZeroPadding2D, padding=1),
    "cropping": lambda x: (
        _of_rank(x, L.Cropping1D, L.Cropping2D, cropping=1)
        if len(x.shape) > 2 and min(x.shape[1:-1]) > 2
        else None
    ),
    "up": lambda x: (
        _of_rank(x, L.UpSampling1D, L.UpSampling2D, size=2) if max(x.shape[1:]) < 9 else None
    ),
    "global average": lambda x: _of_rank(x, L.GlobalAveragePooling1D, L.GlobalAveragePooling2D),
    "flatten": lambda x: L.Flatten() if max(x.shape[1:]) < 9 else None,
    "permute": lambda x: L.Permute((2, 1, 3)) if len(x.shape) == 4 else None,
    "rows": lambda x: L.Reshape((-1, x.shape[-1])) if len(x.shape) == 4 else None,
    "repeat": lambda x: L.RepeatVector(3) if len(x.shape) == 2 else None,
}
KINDS = LINEAR | NORMS | OTHERS
MERGES = {
    "add": L.Add,
    "average of two": L.Average,
    "subtract": L.Subtract,
    "multiply": L.Multiply,
    "concatenate": L.Concatenate,
    "concatenate positions": lambda: L.Concatenate(axis=1),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A new layer on a tensor."""

    kind: str
    source: int


@dataclasses.dataclass(frozen=True)
class Again:
    """A layer that was called before, on another tensor of the same shape."""

    layer: int
    source: int


@dataclasses.dataclass(frozen=True)
class Merge:
    """A tensor with another of the same shape, or with itself."""

    kind: str
    source: int
    other: int


@dataclasses.dataclass(frozen=True)
class Nest:
    """A model of its own, called on one or two tensors of the same shape."""

    steps: tuple
    source: int
    others: tuple


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model: shapes of its inputs, steps, which tensors it returns, seed of its weights."""

    inputs: tuple
    steps: tuple
    outputs: tuple
    seed: int

    def model(self):
        inputs = [keras.Input(shape) for shape in self.inputs]
        tensors = _grow(inputs, self.steps)
        # The last tensor is always returned, so that a step matters.
        outputs = dict.fromkeys([len(tensors) - 1, *(i % len(tensors) for i in self.outputs)])
        return _model(inputs, [tensors[i] for i in outputs])


def _takes_loose_inputs():
    x = keras.Input((1,))
    try:
        keras.Model(x, x)
    except ValueError:
        return False
    return True


# Keras 3.12 wants a layer behind each input of a model, also when a conversion took others away.
TAKES_LOOSE_INPUTS = _takes_loose_inputs()


def _model(inputs, ends):
    tied = [] if TAKES_LOOSE_INPUTS else [L.Activation("linear")(x) for x in inputs]
    return keras.Model(inputs, [*ends, *tied])


def _grow(inputs, steps):
    """The inputs, and what the steps make of them one after the other."""
    tensors, used, states = list(inputs), [], {}
    for step in steps:
        x = _pick(tensors, step.source)
        alike = [t for t in tensors if t.shape == x.shape]
        if isinstance(step, Merge):
            tensors.append(MERGES[step.kind]()([x, _pick(alike, step.other)]))
        elif isinstance(step, Nest):
            inner = keras.Input(x.shape[1:])
            model = _model([inner], _grow([inner], step.steps)[-1:])
            calls = [model(t) for t in [x, *(_pick(alike, i) for i in step.others)]]
            tensors += keras.tree.flatten(calls)
        elif isinstance(step, Again) and used:
            layer, shape = _pick(used, step.layer)
            tensors.append(layer(_pick([t for t in tensors if t.shape == shape], step.source)))
        elif isinstance(step, Layer):
            layer = KINDS[step.kind](x)
            if step.kind == "bkn":  # a chain along its own kind
                y, states["bkn"] = layer(x, previous=states.get("bkn"))
                tensors.append(y)
            elif layer is not None:
                used.append((layer, x.shape))
                tensors.append(layer(x))
    return tensors


def _pick(values, number):
    """The number counts from the last one, so that simple plans are chains."""
    return values[-1 - number % len(values)]


_numbers = st.sampled_from((0, 0, 0, 1, 1, 2, 3, 5))


def _layers(*tables, sources=_numbers):
    return st.builds(Layer, st.one_of(*(st.sampled_from(sorted(x)) for x in tables)), sources)


def _on_the_last(*tables):
    return _layers(*tables, sources=st.just(0))


# Each draws a few steps in a row; a normalizer often stands where it can be folded.
_layer = _layers(LINEAR, NORMS, NORMS, OTHERS).map(lambda step: (step,))
_pair = st.tuples(_layers(LINEAR), _on_the_last(NORMS))
_triple = st.tuples(_layers(LINEAR, NORMS), _on_the_last(OTHERS), _on_the_last(NORMS, LINEAR))
_merge = st.tuples(st.builds(Merge, st.sampled_from(sorted(MERGES)), _numbers, _numbers))
_again = st.tuples(st.builds(Again, _numbers, _numbers))
_simple = (_layer, _layer, _pair, _triple, _merge, _again)


def _lists(kinds, smallest, largest):
    rows = st.lists(st.one_of(*kinds), min_size=smallest, max_size=largest)
    return rows.map(lambda steps: tuple(itertools.chain.from_iterable(steps)))


_others = st.lists(_numbers, max_size=1).map(tuple)
_nest = st.tuples(st.builds(Nest, _lists(_simple, 1, 3), _numbers, _others))


def plans(smallest=3, largest=8):
    """Plans of so many groups of one to three steps."""
    return st.builds(
        Plan,
        st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2).map(tuple),
        _lists((*_simple, _nest), smallest, largest),
        st.lists(_numbers, max_size=2).map(tuple),
        st.integers(0, 2**16),
    )
