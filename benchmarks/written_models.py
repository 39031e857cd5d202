"""Ways in which users write models with normalizers, each as small as it can be."""

from collections.abc import Callable

import keras
import numpy as np

L = keras.layers
IMAGE = (16, 16, 3)


def _saveable(cls: type) -> type:
    return keras.saving.register_keras_serializable(package="benchmarks")(cls)


@_saveable
class Block(L.Layer):
    """Layers in a list."""

    def __init__(self, filters: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.steps = [
            L.Conv2D(filters, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()
        ]  # fmt: skip

    def build(self, shape: tuple) -> None:
        """Each from what the one before it makes."""
        for step in self.steps:
            step.build(shape)
            shape = step.compute_output_shape(shape)

    def call(self, x, training=None):
        """What its layers make of x."""
        for step in self.steps:
            is_norm = isinstance(step, L.BatchNormalization)
            x = step(x, training=training) if is_norm else step(x)
        return x

    def get_config(self) -> dict:
        """With the number of filters."""
        return {**super().get_config(), "filters": self.filters}


def _convolved(x, filters: int, norm: bool = True, layer: type = L.Conv2D, **options):
    x = layer(filters, 3, padding="same", **options)(x)
    return L.ReLU()(L.BatchNormalization()(x) if norm else x)


def blocks_in_lists() -> keras.Model:
    """Layers that hold others in lists."""
    x = inputs = keras.Input(IMAGE)
    for filters in (4, 6):
        x = Block(filters)(x)
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


@_saveable
class Wrapping(keras.Model):
    """A backbone of keras.applications, with a head."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.backbone = keras.applications.MobileNet(
            (32, 32, 3), 0.25, include_top=False, weights=None
        )
        self.pool, self.norm = L.GlobalAveragePooling2D(), L.BatchNormalization()
        self.head = L.Dense(2)

    def call(self, x):
        """What its layers make of x."""
        return self.head(self.norm(self.pool(self.backbone(x))))


def backbone_in_a_model() -> keras.Model:
    """A subclassed model around a functional one."""
    model = Wrapping()
    model(np.zeros((1, 32, 32, 3), "float32"))
    return model


def shared_weights() -> keras.Model:
    """A block that is called twice."""
    x = inputs = keras.Input(IMAGE)
    block = Block(3)
    return keras.Model(inputs, L.Add()([block(block(x)), Block(3)(x)]))


@_saveable
class UNet(keras.Model):
    """A train_step of its own, and skip connections in a list."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.down, self.up = [Block(4), Block(6)], [Block(6), Block(4)]
        self.pool, self.grow, self.join = L.MaxPooling2D(), L.UpSampling2D(), L.Concatenate()
        self.head = L.Conv2D(2, 1)

    def call(self, x, training=None):
        """What its layers make of x."""
        skips = []
        for block in self.down:
            x = block(x, training=training)
            skips.append(x)
            x = self.pool(x)
        for block in self.up:
            x = block(self.join([self.grow(x), skips.pop()]), training=training)
        return self.head(x)

    def train_step(self, data):
        """With a metric of its own."""
        return {**super().train_step(data), "own": 1.0}


def own_train_step() -> keras.Model:
    """A subclassed U-Net."""
    model = UNet()
    model(np.zeros((1, *IMAGE), "float32"))
    return model


def functional_in_subclassed_in_functional() -> keras.Model:
    """A subclassed U-Net in a functional model, which holds functional parts."""
    x = keras.Input(IMAGE)
    return keras.Model(x, UNet(name="inner")(_convolved(x, 3)))


def model_at_each_time() -> keras.Model:
    """TimeDistributed around a model."""
    x = inputs = keras.Input(IMAGE)
    inner = keras.Model(inputs, L.GlobalAveragePooling2D()(_convolved(x, 4)))
    x = keras.Input((3, *IMAGE))
    return keras.Model(x, L.Dense(2)(L.TimeDistributed(inner)(x)))


def conv_lstm() -> keras.Model:
    """Behind a recurrent convolution."""
    x = inputs = keras.Input((3, *IMAGE))
    x = L.BatchNormalization()(L.ConvLSTM2D(4, 3, return_sequences=True)(x))
    return keras.Model(inputs, L.BatchNormalization()(L.Conv3D(2, 3)(x)))


def unet_3d() -> keras.Model:
    """With transposed convolutions in three dimensions."""
    x = inputs = keras.Input((8, 8, 8, 1))
    skip = _convolved(x, 4, layer=L.Conv3D)
    x = _convolved(L.MaxPooling3D()(skip), 6, layer=L.Conv3D)
    x = _convolved(x, 4, layer=L.Conv3DTranspose, strides=2)
    return keras.Model(inputs, L.Conv3D(2, 1)(L.Concatenate()([x, skip])))


def generator() -> keras.Model:
    """One half of a GAN."""
    x = inputs = keras.Input((5,))
    x = L.Reshape((4, 4, 4))(L.ReLU()(L.BatchNormalization()(L.Dense(64, use_bias=False)(x))))
    x = _convolved(x, 4, layer=L.Conv2DTranspose, strides=2, use_bias=False)
    return keras.Model(inputs, L.Conv2D(3, 3, padding="same", activation="tanh")(x))


def discriminator() -> keras.Model:
    """The other half."""
    x = inputs = keras.Input((8, 8, 3))
    x = L.LeakyReLU()(L.BatchNormalization()(L.Conv2D(4, 4, 2, padding="same")(x)))
    return keras.Model(inputs, L.Dense(1)(L.Flatten()(x)))


def mixed_precision() -> keras.Model:
    """In bfloat16."""
    x = inputs = keras.Input(IMAGE)
    x = Block(4, dtype="mixed_bfloat16")(x)
    x = _convolved(x, 4, dtype="mixed_bfloat16")
    return keras.Model(inputs, L.Dense(2, dtype="float32")(L.Flatten()(x)))


def low_rank_adapters() -> keras.Model:
    """A layer with LoRA."""
    model = blocks_in_lists()
    model.layers[-1].enable_lora(2)
    return model


def int8_layers() -> keras.Model:
    """A quantized layer."""
    model = blocks_in_lists()
    model.layers[-1].quantize("int8")
    return model


MODELS: dict[str, Callable[[], keras.Model]] = {
    build.__name__: build
    for build in (
        blocks_in_lists, backbone_in_a_model, shared_weights, own_train_step,
        functional_in_subclassed_in_functional, model_at_each_time, conv_lstm, unet_3d, generator,
        discriminator, mixed_precision, low_rank_adapters, int8_layers,
    )
}  # fmt: skip
