"""The network and the training step on which every normalizer of the registry is tried."""

import keras
import numpy as np
import tensorflow as tf

from tfnorm.layers import norms, replicas
from tfnorm.layers.base import ChannelNormalization

PADDING = -99.0
BATCH, SIZE, CHANNELS, FILTERS = 4, 4, 3, 5
NORMALIZERS = tuple(
    name
    for name in norms.NAMES
    if issubclass(norms.get(name).layer_class or object, ChannelNormalization)
)

# Those that are an affine map at inference, before a clamp.
AFFINE = tuple(name for name in NORMALIZERS if norms.get(name).foldable)
# Those that normalize an example by more than moments of its batch: what is one matters to them.
OF_EXAMPLES = ("on", "sn", "bin", "evalnorm")


@keras.saving.register_keras_serializable(package="tests")
class Conv(keras.layers.Conv2D):
    """A convolution of stride 1 that hands on the mask of its input."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.supports_masking = True


@keras.saving.register_keras_serializable(package="tests")
class MaskPadding(keras.layers.Layer):
    """Masks the positions of which all channels are PADDING; makes them zero."""

    def __init__(self, axis, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis
        self.supports_masking = True

    def compute_mask(self, inputs, mask=None):
        return keras.ops.any(keras.ops.not_equal(inputs, PADDING), self.axis)

    def call(self, inputs):
        valid = keras.ops.any(keras.ops.not_equal(inputs, PADDING), self.axis, keepdims=True)
        return keras.ops.where(valid, inputs, keras.ops.zeros_like(inputs))

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}


def network(name, channels_first=False, masked=False, **options):
    """Two convolutions, each followed by the normalizer; weights that depend on nothing else."""
    data_format, axis = ("channels_first", 1) if channels_first else ("channels_last", -1)
    shape = (CHANNELS, SIZE, SIZE) if channels_first else (SIZE, SIZE, CHANNELS)
    normalizer = norms.get(name, **options)

    def convolution(filters, size):
        return Conv(filters, size, padding="same", use_bias=False, data_format=data_format)

    dtype = "float64" if keras.config.dtype_policy().name == "float64" else "float32"
    inputs = x = keras.Input(shape, dtype=dtype)
    if masked:
        x = MaskPadding(axis)(x)
    x, state = normalizer(convolution(FILTERS, 3), x, None)
    x = keras.layers.Activation("tanh")(x)
    x, state = normalizer(convolution(FILTERS, 1), x, state)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(7)
    for variable in model.trainable_variables:
        # Near what initializers give, but no two equal: γ of ones and β of zeros hide mistakes.
        noise = rng.normal(0, 0.1, variable.shape)
        base = rng.normal(0, 0.5, variable.shape) if len(variable.shape) == 4 else variable.numpy()
        variable.assign(base + noise)
    return model


def normalizing_layers(model):
    return [layer for layer in model.layers if isinstance(layer, ChannelNormalization)]


def batch(step, masked=False):
    """x and ∂L/∂y of a step, channels last; with a mask, some positions of x are PADDING."""
    rng = np.random.default_rng(step)
    x = rng.normal(0.5, 1.5, (BATCH, SIZE, SIZE, CHANNELS))
    dy = rng.normal(size=(BATCH, SIZE, SIZE, FILTERS))
    if masked:
        padded = rng.random(x.shape[:-1]) < 0.3
        x = np.where(padded[..., None], PADDING, x)
        dy = dy * ~padded[..., None]
    return x, dy


def training_step(model, learning_rate=0.05):
    """A function (x, dy) -> (y, dx): one step of gradient descent on Σ y·dy.

    Under replicas each applies the sum of all replicas' gradients.
    """

    def step(x, dy):
        variables = [v.value for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
            loss = tf.reduce_sum(tf.cast(y, dy.dtype) * dy)
        dx, *gradients = tape.gradient(loss, [x, *variables])
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        for variable, gradient in zip(model.trainable_variables, gradients):
            variable.assign_sub(learning_rate * gradient)
        return y, dx

    return step


class Trainer:
    """Runs training steps of a model in one of the modes, on one or more replicas."""

    def __init__(self, model, mode="eager", strategy=None):
        self.model, self.strategy = model, strategy
        self.step = training_step(model)
        if strategy is not None:
            inner = self.step
            self.step = lambda x, dy: strategy.run(inner, (x, dy))
        self.inference = lambda x: model(x, training=False)
        if mode != "eager":
            jit_compile = mode == "xla" or None
            self.step = tf.function(self.step, jit_compile=jit_compile)
            self.inference = tf.function(self.inference, jit_compile=jit_compile)
        first = model.input_shape[1] == CHANNELS
        self.order = (0, 3, 1, 2) if first else (0, 1, 2, 3)
        self.back = np.argsort(self.order)
        self.dtype = "float64" if model.dtype_policy.compute_dtype == "float64" else "float32"

    def __call__(self, x, dy):
        """(y, dx) as float64 arrays, channels last."""
        arrays = [np.transpose(a, self.order).astype(self.dtype) for a in (x, dy)]
        if self.strategy is None:
            results = self.step(*map(tf.constant, arrays))
        else:
            parts = [np.split(a, self.strategy.num_replicas_in_sync) for a in arrays]
            distribute = self.strategy.experimental_distribute_values_from_function
            results = self.step(
                *(
                    distribute(lambda c, p=p: tf.constant(p[c.replica_id_in_sync_group]))
                    for p in parts
                )
            )
        return tuple(self._gather(r) for r in results)

    def _gather(self, value):
        if self.strategy is not None:
            value = tf.concat(self.strategy.experimental_local_results(value), 0)
        return np.transpose(tf.cast(value, tf.float64).numpy(), self.back)

    def infer(self, x):
        x = tf.constant(np.transpose(x, self.order).astype(self.dtype))
        return np.transpose(tf.cast(self.inference(x), tf.float64).numpy(), self.back)


def values(model):
    """Name -> value of all variables, replicas synchronized first."""
    replicas.synchronize_statistics(model)
    result = {}
    for index, layer in enumerate(model.layers):
        for variable in layer.variables:
            result[f"{index}/{variable.name}"] = keras.ops.convert_to_numpy(variable)
    return result


def assert_identical(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
        assert actual[name].dtype == value.dtype, name
