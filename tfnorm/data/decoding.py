"""Encoded images: their size, and their pixels, whole or within a window.

Images stay encoded until a transform knows which window of them it wants: of a JPEG no more than
that window is decoded. What is decoded already is accepted everywhere too.
"""

import tensorflow as tf

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Where width and height stand, big-endian numbers of 4 bytes, and the number of bits behind them.
_PNG_SIZE, _PNG_BITS = 16, 24


def size(image: tf.Tensor) -> tf.Tensor:
    """Height and width of an image.

    Args:
        image: [] string (JPEG, PNG, GIF or BMP), or [h, w, c] or [h, w].

    Returns:
        [2] int32. From the header where that is JPEG or PNG.
    """
    if image.dtype != tf.string:
        return tf.shape(image)[:2]
    is_png = tf.strings.substr(image, 0, len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    kind = tf.where(tf.io.is_jpeg(image), 0, tf.where(is_png, 1, 2))
    return tf.switch_case(
        kind,
        [
            lambda: tf.io.extract_jpeg_shape(image)[:2],
            lambda: _png_size(image),
            lambda: tf.shape(tf.io.decode_image(image, expand_animations=False))[:2],
        ],
    )


def pixels(image: tf.Tensor, window: tf.Tensor | None, channels: int) -> tf.Tensor:
    """The pixels of an image.

    Args:
        image: [] string, or [h, w, channels] of any type.
        window: [4] int32, top, left, height and width of the part to return; None is all.
        channels: Number of channels.

    Returns:
        [height, width, channels], uint8 if it was encoded.
    """
    if image.dtype != tf.string:
        return _cut(image, window)
    if window is None:
        decoded = tf.io.decode_image(image, channels, expand_animations=False)
    else:
        decoded = tf.cond(
            tf.io.is_jpeg(image),
            lambda: tf.io.decode_and_crop_jpeg(image, window, channels=channels),
            lambda: _cut(tf.io.decode_image(image, channels, expand_animations=False), window),
        )
    decoded.set_shape([None, None, channels])
    return decoded


def labels(image: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    """The values of a mask or an instance map.

    Args:
        image: [] string (PNG of 8 or 16 bits), or [h, w] integers.
        window: As of `pixels`.

    Returns:
        [height, width] int32.
    """
    if image.dtype == tf.string:
        bits = tf.io.decode_raw(tf.strings.substr(image, _PNG_BITS, 1), tf.uint8)[0]
        # Of the other type the values would come out multiplied or divided.
        image = tf.cond(
            bits == 16, lambda: _decode(image, tf.uint16), lambda: _decode(image, tf.uint8)
        )
    return tf.cast(_cut(image, window), tf.int32)


def _decode(image: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    decoded = tf.io.decode_image(image, 1, dtype, expand_animations=False)
    return tf.cast(tf.ensure_shape(decoded, [None, None, 1])[..., 0], tf.int32)


def _cut(image: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    if window is None:
        return image
    top, left, height, width = tf.unstack(window)
    return image[top : top + height, left : left + width]


def _png_size(image: tf.Tensor) -> tf.Tensor:
    bytes_ = tf.io.decode_raw(tf.strings.substr(image, _PNG_SIZE, 8), tf.uint8)
    numbers = tf.reshape(bytes_, [2, 4])
    places = tf.constant([1 << 24, 1 << 16, 1 << 8, 1])
    return tf.reduce_sum(tf.cast(numbers, tf.int32) * places, axis=1)[::-1]
