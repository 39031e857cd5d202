"""The places of a normalizer in a model, and what is left of it there once it is folded.

One table, which the tests check row by row and `benchmarks.folding` puts before other exporters.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tfnorm import layers
from tfnorm.layers import norms

L = keras.layers

IMAGE, SEQUENCE, VOLUME, VECTOR = (8, 9, 6), (10, 6), (5, 6, 4, 6), (6,)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A piece of a model with normalizers in it.

    Attributes:
        name: of the row.
        shape: of the input, without the batch.
        build: from the input to the output or the outputs.
        folded: for each normalizer, in the order of the calls, whether `tfnorm.fold` removes it;
            what it does not remove stays as one multiplication and one addition.
        own: floating-point operations of the graph that are none of a normalizer's.
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[Any], Any]
    folded: Sequence[bool]
    own: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def model(self) -> keras.Model:
        """The model of it. Once: it is made of layers that belong to the pattern."""
        inputs = keras.Input(self.shape)
        return keras.Model(inputs, self.build(inputs))

    @property
    def multiplies(self) -> bool:
        """Whether other layers than the normalizers multiply."""
        return bool({"Mul", "RealDiv"} & self.own.keys())

    def operations(self) -> dict[str, int]:
        """What the exported graph may hold of the operations that normalizers are made of."""
        left = list(self.folded).count(False)
        expected = {"Rsqrt": 0, "Mul": left, "AddV2": left, "Sub": 0}
        return {name: count + self.own.get(name, 0) for name, count in expected.items()}


def bn(**options) -> keras.Layer:
    """Keras' own batch normalization."""
    return L.BatchNormalization(**options)


def stack(*stacked: keras.Layer) -> Callable[[Any], Any]:
    """One layer on the other."""

    def build(x):
        for layer in stacked:
            x = layer(x)
        return x

    return build


def after_conv(*stacked: keras.Layer) -> Callable[[Any], Any]:
    """A convolution, and the layers on it."""
    return stack(L.Conv2D(4, 3), *stacked)


def before_conv(*stacked: keras.Layer) -> Callable[[Any], Any]:
    """A normalizer that follows the input, the layers on it, and a convolution."""
    return stack(bn(), *stacked, L.Conv2D(4, 3))


def _kinds() -> Iterator[Pattern]:
    """Every kind of layer before the normalizer, without and with bias, in its variants."""
    window = {"filters": 4, "kernel_size": 3}
    same, first = {"padding": "same"}, {"data_format": "channels_first"}
    table = [
        ("conv1d", SEQUENCE, L.Conv1D, window),
        ("conv1d same strided", SEQUENCE, L.Conv1D, {**window, **same, "strides": 2}),
        ("conv1d causal", SEQUENCE, L.Conv1D, {**window, "padding": "causal"}),
        ("conv1d dilated", SEQUENCE, L.Conv1D, {**window, "dilation_rate": 2}),
        ("conv1d groups", SEQUENCE, L.Conv1D, {**window, "groups": 2}),
        ("conv2d", IMAGE, L.Conv2D, window),
        ("conv2d same", IMAGE, L.Conv2D, {**window, **same}),
        ("conv2d strided", IMAGE, L.Conv2D, {**window, "strides": 2}),
        ("conv2d dilated", IMAGE, L.Conv2D, {**window, "dilation_rate": 2}),
        ("conv2d groups", IMAGE, L.Conv2D, {**window, "groups": 2}),
        ("conv2d pointwise", IMAGE, L.Conv2D, {**window, "kernel_size": 1}),
        ("conv3d", VOLUME, L.Conv3D, {**window, "kernel_size": 2}),
        ("conv3d same", VOLUME, L.Conv3D, {**window, **same}),
        ("conv3d strided", VOLUME, L.Conv3D, {**window, "kernel_size": 2, "strides": 2}),
        ("conv1d transposed", SEQUENCE, L.Conv1DTranspose, window),
        ("conv1d transposed strided", SEQUENCE, L.Conv1DTranspose, {**window, "strides": 2}),
        ("conv2d transposed", IMAGE, L.Conv2DTranspose, {**window, "strides": 2}),
        ("conv2d transposed same", IMAGE, L.Conv2DTranspose, {**window, **same, "strides": 2}),
        ("conv3d transposed", VOLUME, L.Conv3DTranspose, {**window, "kernel_size": 2}),
        ("depthwise1d", SEQUENCE, L.DepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}),
        ("depthwise2d", IMAGE, L.DepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2}),
        ("depthwise2d same strided", IMAGE, L.DepthwiseConv2D,
         {"kernel_size": 3, "strides": 2, **same}),
        ("depthwise2d dilated", IMAGE, L.DepthwiseConv2D, {"kernel_size": 3, "dilation_rate": 2}),
        ("separable1d", SEQUENCE, L.SeparableConv1D, window),
        ("separable1d same", SEQUENCE, L.SeparableConv1D, {**window, **same}),
        ("separable2d", IMAGE, L.SeparableConv2D, {**window, "depth_multiplier": 2}),
        ("separable2d strided", IMAGE, L.SeparableConv2D, {**window, **same, "strides": 2}),
        ("dense rank 2", VECTOR, L.Dense, {"units": 4}),
        ("dense rank 3", SEQUENCE, L.Dense, {"units": 4}),
        ("dense rank 4", IMAGE, L.Dense, {"units": 4}),
    ]  # fmt: skip
    for name, shape, kind, options in table:
        yield Pattern(name, shape, stack(kind(**options, use_bias=False), bn()), [True])
        yield Pattern(f"{name}, bias", shape, stack(kind(**options), bn()), [True])
    # Sizes that differ from the number of channels: Keras takes the bias for one of the last axis.
    for name, shape, kind, options in [
        ("conv1d", (6, 10), L.Conv1D, window),
        ("conv2d", (6, 8, 9), L.Conv2D, {**window, **same}),
        ("conv3d", (6, 5, 6, 5), L.Conv3D, {**window, **same}),
        ("conv2d transposed", (6, 8, 9), L.Conv2DTranspose, window),
        ("separable2d", (6, 8, 9), L.SeparableConv2D, {**window, **same}),
        ("depthwise2d", (6, 8, 9), L.DepthwiseConv2D, {"kernel_size": 3, **same}),
    ]:
        norm = stack(kind(**options, **first), bn(axis=1))
        yield Pattern(f"{name} channels first", shape, norm, [True])


def _normalizers() -> Iterator[Pattern]:
    """Every normalizer of the registry that is linear at inference, after two kinds of layers."""
    for name in norms.NAMES:
        norm = norms.get(name)
        if norm.foldable and norm.layer_class is not None:
            yield Pattern(f"{name} after conv2d", IMAGE, _chain(norm, L.Conv2D, 4, 3), [True] * 2)
            yield Pattern(f"{name} after dense", VECTOR, _chain(norm, L.Dense, 4), [True] * 2)
    centralized = [
        ("conv2d transposed", IMAGE, L.Conv2DTranspose(4, 3)),
        ("depthwise2d", IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2)),
        ("conv1d", SEQUENCE, L.Conv1D(4, 3)),
    ]
    for name, shape, layer in centralized:
        pattern = stack(
            layers.WeightCentralization(layer), layers.MovingAverageBatchNormalization()
        )
        yield Pattern(f"{name} centralized", shape, pattern, [True])


def _chain(norm: norms.Normalizer, kind: type, *size: int) -> Callable[[Any], Any]:
    def build(x):
        y, state = norm(kind(*size, use_bias=False), x)
        y, _ = norm(kind(*size, use_bias=False), L.ReLU()(y), state)
        return y

    return build


def _positions() -> Iterator[Pattern]:
    """The layers directly beside the normalizer, and its own options."""
    for name, shape, build, folded in [
        ("chain of three", IMAGE, after_conv(bn(), bn(), bn(), L.ReLU()), [True] * 3),
        ("chain of kinds", IMAGE,
         after_conv(bn(), layers.BatchRenormalization(), layers.MovingAverageBatchNormalization()),
         [True] * 3),
        ("before an activation", IMAGE, after_conv(bn(), L.ReLU()), [True]),
        ("without center", IMAGE, after_conv(bn(center=False)), [True]),
        ("without scale", IMAGE, after_conv(bn(scale=False)), [True]),
        ("linear activation", IMAGE, stack(L.Conv2D(4, 3, activation="linear"), bn()), [True]),
        ("after an activation", IMAGE, stack(L.Conv2D(4, 3, activation="relu"), bn()), [False]),
        ("after the input", IMAGE, stack(bn(), L.ReLU()), [False]),
        ("merged in one", VECTOR, stack(bn(), bn(), L.ReLU(), bn()), [False, True, False]),
        ("other axis", IMAGE, after_conv(bn(axis=1)), [False]),
        ("axis from the front", IMAGE, after_conv(bn(axis=3)), [True]),
        # Keras would add the bias along the width, which is that of the channels.
        ("channels first, ambiguous", IMAGE,
         stack(L.Conv2D(4, 3, data_format="channels_first"), bn(axis=1)), [False]),
        ("channels first, other axis", IMAGE,
         stack(L.Conv2D(4, 3, data_format="channels_first"), bn()), [False]),
    ]:  # fmt: skip
        yield Pattern(name, shape, build, folded)


def _following() -> Iterator[Pattern]:
    """Nothing linear before the normalizer: into the layer after it."""
    for name, shape, build, folded in [
        ("into dense, rank 2", VECTOR, stack(bn(), L.Dense(4)), [True]),
        ("into dense, rank 3", SEQUENCE, stack(bn(), L.Dense(4, use_bias=False)), [True]),
        ("into dense with relu", VECTOR, stack(bn(), L.Dense(4, activation="relu")), [True]),
        ("into conv1d", SEQUENCE, stack(bn(), L.Conv1D(4, 3)), [True]),
        ("into conv1d causal", SEQUENCE, stack(bn(), L.Conv1D(4, 3, padding="causal")), [False]),
        ("into conv2d", IMAGE, stack(bn(), L.Conv2D(4, 3, strides=2)), [True]),
        ("into conv2d groups", IMAGE, stack(bn(), L.Conv2D(4, 3, groups=2)), [True]),
        ("into conv2d same", IMAGE, stack(bn(), L.Conv2D(4, 3, padding="same")), [False]),
        ("into conv2d pointwise", IMAGE, stack(bn(), L.Conv2D(4, 1, padding="same")), [True]),
        ("into patches", (8, 6, 6), stack(bn(), L.Conv2D(4, 2, strides=2, padding="same")), [True]),
        ("into patches, cut", IMAGE, stack(bn(), L.Conv2D(4, 2, strides=2, padding="same")),
         [False]),
        ("into conv2d channels first", (6, 8, 9),
         stack(bn(axis=1), L.Conv2D(4, 3, data_format="channels_first")), [True]),
        ("into conv3d", VOLUME, stack(bn(), L.Conv3D(4, 2)), [True]),
        ("into depthwise1d", SEQUENCE, stack(bn(), L.DepthwiseConv1D(3)), [True]),
        ("into depthwise2d", IMAGE, stack(bn(), L.DepthwiseConv2D(3, depth_multiplier=2)), [True]),
        ("into separable1d", SEQUENCE, stack(bn(), L.SeparableConv1D(4, 3)), [True]),
        ("into separable2d", IMAGE, stack(bn(), L.SeparableConv2D(4, 3)), [True]),
        ("into conv2d transposed", IMAGE, stack(bn(), L.Conv2DTranspose(4, 3)), [False]),
        ("into conv2d transposed pointwise", IMAGE, stack(bn(), L.Conv2DTranspose(4, 1)), [True]),
        ("into centralized", IMAGE, stack(bn(), layers.WeightCentralization(L.Conv2D(4, 3))),
         [True]),
        ("between relu and conv2d", IMAGE, after_conv(L.ReLU(), bn(), L.Conv2D(4, 3)), [True]),
        ("chain into conv2d", IMAGE, before_conv(bn()), [True, True]),
    ]:  # fmt: skip
        yield Pattern(name, shape, build, folded)


def _between() -> Iterator[Pattern]:
    """Layers between the normalizer and the linear layer."""
    pool_first = L.AveragePooling2D(2, data_format="channels_first")
    conv_first = L.Conv2D(5, 3, data_format="channels_first")
    for name, shape, build, folded, *own in [
        ("through average pooling", IMAGE,
         after_conv(L.AveragePooling2D(2, padding="same"), bn()), [True]),
        ("through average pooling 1d", SEQUENCE,
         stack(L.Conv1D(4, 3), L.AveragePooling1D(2), bn()), [True]),
        ("through average pooling 3d", VOLUME,
         stack(L.Conv3D(4, 2), L.AveragePooling3D(2), bn()), [True]),
        ("through average pooling, channels first", IMAGE,
         stack(conv_first, pool_first, bn(axis=1)), [True]),
        ("through average pooling of other axes", IMAGE,
         after_conv(L.AveragePooling2D((1, 2), data_format="channels_first"), bn()), [True]),
        ("through global average", IMAGE, after_conv(L.GlobalAveragePooling2D(), bn()), [True]),
        ("through global average, kept axes", IMAGE,
         after_conv(L.GlobalAveragePooling2D(keepdims=True), bn()), [True]),
        ("through maximum, positive scale", IMAGE,
         after_conv(L.MaxPooling2D(2), bn(scale=False)), [True]),
        ("through global maximum, positive scale", IMAGE,
         after_conv(L.GlobalMaxPooling2D(), bn(scale=False)), [True]),
        ("through maximum, negative scale", IMAGE, after_conv(L.MaxPooling2D(2), bn()), [False]),
        ("through up-sampling", IMAGE, after_conv(L.UpSampling2D(2), bn()), [True]),
        ("through bilinear up-sampling", IMAGE,
         after_conv(L.UpSampling2D(2, interpolation="bilinear"), bn()), [True]),
        ("through bicubic up-sampling", IMAGE,
         after_conv(L.UpSampling2D(2, interpolation="bicubic"), bn()), [True]),
        ("through up-sampling 1d", SEQUENCE, stack(L.Conv1D(4, 3), L.UpSampling1D(2), bn()),
         [True]),
        ("through cropping", IMAGE, after_conv(L.Cropping2D(1), bn()), [True]),
        ("through zero padding", IMAGE, after_conv(L.ZeroPadding2D(1), bn()), [False]),
        ("through dropout", IMAGE, after_conv(L.Dropout(0.5), L.SpatialDropout2D(0.5), bn()),
         [True]),
        ("through noise", IMAGE, after_conv(L.GaussianNoise(0.5), L.GaussianDropout(0.5), bn()),
         [True]),
        ("through identity", IMAGE, after_conv(L.Identity(), L.Activation("linear"), bn()), [True]),
        ("through tanh", IMAGE, after_conv(L.Activation("tanh"), bn()), [False]),
        ("through reshape", VECTOR, stack(L.Dense(24), L.Reshape((2, 3, 4)), bn()), [True]),
        ("through reshape to rows", IMAGE, after_conv(L.Reshape((42, 4)), bn()), [True]),
        ("through reshape that mixes", (4, 6), stack(L.Dense(4), L.Reshape((2, 8)), bn()), [False]),
        ("through flatten", IMAGE, after_conv(L.Flatten(), bn()), [False]),
        ("through flatten to dense", IMAGE, stack(L.ReLU(), bn(), L.Flatten(), L.Dense(4)), [True]),
        ("after flatten, into dense", IMAGE, after_conv(L.Flatten(), bn(), L.Dense(4)), [True]),
        ("through permute", IMAGE, after_conv(L.Permute((3, 2, 1)), bn(axis=1)), [True]),
        ("through permute, other axis", IMAGE, after_conv(L.Permute((3, 2, 1)), bn()), [False]),
        ("through permute to conv2d", IMAGE, before_conv(L.Permute((2, 1, 3))), [True]),
        ("through repeat", VECTOR, stack(L.Dense(4), L.RepeatVector(3), bn()), [True]),
        ("through average to conv2d", IMAGE, before_conv(L.AveragePooling2D(2)), [True]),
        ("through global average to dense", IMAGE,
         stack(bn(), L.GlobalAveragePooling2D(), L.Dense(4)), [True]),
        ("through zero padding to conv2d", IMAGE, before_conv(L.ZeroPadding2D(1)), [False]),
        ("through several", IMAGE,
         after_conv(L.Dropout(0.5), L.AveragePooling2D(2), L.UpSampling2D(2), bn(), L.ReLU()),
         [True]),
    ]:  # fmt: skip
        yield Pattern(name, shape, build, folded, *own)
    if hasattr(L, "AdaptiveAveragePooling2D"):  # Keras 3.12 has none.
        adaptive = after_conv(L.AdaptiveAveragePooling2D((2, 2)), bn())
        yield Pattern("through adaptive average", (8, 8, 6), adaptive, [True], {"Mul": 4})


def _merge(kind: type[keras.Layer], filters: int = 4, **options) -> Callable[[Any], Any]:
    def build(x):
        branches = [L.Conv2D(4, 3, padding="same")(x), L.Conv2D(filters, 1)(x)]
        return bn()(kind(**options)(branches))

    return build


def _operators(x):
    y = L.Conv2D(4, 3, padding="same")(x) + L.Conv2D(4, 1)(x)
    return bn()(keras.ops.concatenate([y - L.Conv2D(4, 1)(x), L.Dense(2)(x)], axis=-1))


def _constant_added(x):
    return bn()(L.Conv2D(4, 1)(x) + 1.5)


def _half_linear(kind: type[keras.Layer]) -> Callable[[Any], Any]:
    def build(x):
        return bn()(kind()([L.Conv2D(4, 1)(x), L.ReLU()(L.Conv2D(4, 1)(x))]))

    return build


def _residual(x):
    y = bn()(L.Conv2D(6, 3, padding="same")(x))
    return L.ReLU()(L.Add()([bn()(L.Conv2D(6, 3, padding="same")(L.ReLU()(y))), x]))


def _pre_activation(x):
    y = L.Conv2D(6, 3, padding="same")(L.ReLU()(bn()(x)))
    return L.ReLU()(bn()(L.Add()([y, x])))


def _dense_block(x):
    y = bn()(L.Conv2D(4, 1, use_bias=False)(L.ReLU()(bn()(x))))
    y = L.Concatenate()([x, L.Conv2D(4, 3, padding="same")(L.ReLU()(y))])
    return L.Conv2D(4, 1)(L.ReLU()(bn()(y)))


def _of_pooled_and_shared(x):
    convolution = L.Conv2D(4, 3, padding="same")
    return bn()(L.Add()([convolution(x), L.AveragePooling2D(3, 1, "same")(convolution(-x))]))


def _fork_to(*kinds: Callable[[], keras.Layer]) -> Callable[[Any], Any]:
    def build(x):
        y = bn()(x)
        return [kind()(y) for kind in kinds]

    return build


def _beside_a_norm(x):
    return L.Conv2D(4, 1)(L.Concatenate()([bn()(x), bn()(L.ReLU()(x))]))


def _two_users(x):
    y = L.Conv2D(4, 3)(x)
    return L.Add()([bn()(y), y])


def _two_users_and_conv(x):
    y = L.Conv2D(4, 3)(x)
    return [L.Conv2D(4, 3)(bn()(y)), L.ReLU()(y)]


def _several_users_of_the_norm(x):
    y = bn()(L.Conv2D(4, 3)(x))
    return L.Add()([L.ReLU()(y), y])


def _branches() -> Iterator[Pattern]:
    """Several users of a tensor, several tensors in one."""
    add, sub = {"AddV2": 1}, {"Sub": 1}
    for name, build, folded, own in [
        ("output used twice", _several_users_of_the_norm, [True], add),
        ("input used twice", _two_users, [False], add),
        ("input used twice, into conv2d", _two_users_and_conv, [True], {}),
        ("residual block", _residual, [True, True], add),
        ("pre-activation block", _pre_activation, [False, False], add),
        ("dense block", _dense_block, [False, True, False], {}),
        ("concatenated", _merge(L.Concatenate, filters=3), [True], {}),
        ("concatenated rows", _merge(L.Concatenate, axis=1), [True], {}),
        ("concatenated with relu", _half_linear(L.Concatenate), [False], {}),
        ("added", _merge(L.Add), [True], add),
        ("added to relu", _half_linear(L.Add), [False], add),
        ("subtracted", _merge(L.Subtract), [True], sub),
        ("averaged", _merge(L.Average), [True], {**add, "RealDiv": 1}),
        ("multiplied", _merge(L.Multiply), [False], {"Mul": 1}),
        ("added, one shared layer", _of_pooled_and_shared, [True], add),
        ("operators", _operators, [True], {"AddV2": 1, "Sub": 1}),
        ("constant added", _constant_added, [True], add),
        ("fork to two layers", _fork_to(lambda: L.Conv2D(4, 3), lambda: L.Dense(5)), [True], {}),
        ("fork to conv2d and relu", _fork_to(lambda: L.Conv2D(4, 3), L.ReLU), [False], {}),
        ("beside another, into conv2d", _beside_a_norm, [True, True], {}),
    ]:
        yield Pattern(name, IMAGE, build, folded, own)


def _shared_with_one_norm(x):
    convolution, norm = L.Conv2D(6, 3, padding="same"), bn()
    return norm(convolution(L.ReLU()(norm(convolution(x)))))


def _shared_with_two_norms(x):
    convolution = L.Conv2D(6, 3, padding="same")
    return bn()(convolution(L.ReLU()(bn()(convolution(x)))))


def _shared_with_half_a_norm(x):
    convolution = L.Conv2D(6, 3, padding="same")
    return L.Add()([convolution(x), bn()(convolution(L.ReLU()(x)))])


def _shared_after_two_norms(x):
    convolution = L.Conv2D(6, 3)
    return [convolution(bn()(x)), L.ReLU()(convolution(bn()(L.ReLU()(x))))]


def _pyramid(x):
    """Heads of a detector: the convolutions are shared between levels, the normalizers not."""
    first, second = L.Conv2D(6, 3, padding="same"), L.SeparableConv2D(6, 3, padding="same")
    levels = [x, L.AveragePooling2D(2)(x)]
    return [L.ReLU()(bn()(second(L.ReLU()(bn()(first(level)))))) for level in levels]


def _dropout_at_all_times(x):
    return bn()(L.Dropout(0.0)(L.Conv2D(4, 3)(x), training=True))


def _shared_norm(x):
    norm = bn()
    return L.Add()([norm(L.Conv2D(4, 1)(x)), norm(L.Conv2D(4, 3, padding="same")(x))])


def _nested(x):
    block = keras.Sequential([L.Conv2D(6, 3, padding="same"), bn(), L.ReLU()])
    inner = keras.Input(x.shape[1:])
    twice = keras.Model(inner, block(block(inner)))
    return bn()(L.Conv2D(4, 3)(twice(block(x))))


def _across_the_border(x):
    y = L.Conv2D(4, 3, padding="same")(x)
    head = keras.Input(y.shape[1:], dtype=y.dtype)
    return keras.Model(head, L.ReLU()(bn()(head)))(y)


def _nested_before_two_norms(x):
    inner = keras.Sequential([L.ReLU(), L.Conv2D(6, 3, padding="same")])
    return bn()(inner(bn()(inner(x))))


def _shared() -> Iterator[Pattern]:
    """Layers and models that are called more than once."""
    for name, build, folded, own in [
        ("shared conv2d, one norm", _shared_with_one_norm, [True] * 2, {}),
        ("shared conv2d, two norms", _shared_with_two_norms, [True] * 2, {}),
        ("shared conv2d, norm at one call", _shared_with_half_a_norm, [True], {"AddV2": 1}),
        ("shared conv2d after two norms", _shared_after_two_norms, [True] * 2, {}),
        ("shared heads of a pyramid", _pyramid, [True] * 4, {}),
        ("shared norm", _shared_norm, [True] * 2, {"AddV2": 1}),
        ("dropout at all times", _dropout_at_all_times, [False], {}),
        ("nested models", _nested, [True] * 4, {}),
        ("across the border of a model", _across_the_border, [True], {}),
        ("nested model before two norms", _nested_before_two_norms, [True] * 2, {}),
    ]:
        yield Pattern(name, IMAGE, build, folded, own)


GROUPS: dict[str, Callable[[], Iterator[Pattern]]] = {
    "After every kind of layer": _kinds,
    "Every normalizer": _normalizers,
    "Position and options": _positions,
    "Into the layer after": _following,
    "Layers in between": _between,
    "Branches": _branches,
    "Shared and nested": _shared,
}


def patterns() -> list[Pattern]:
    """All rows of the table."""
    return [pattern for rows in GROUPS.values() for pattern in rows()]
