"""Fine-tune a network of keras.applications on two images at a time, with CBN in place of BN.

python examples/fine_tuning.py --weights=imagenet --steps=500
"""

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_digits

import tfnorm

FLAGS = flags.FLAGS
flags.DEFINE_string("network", "ResNet50", "A network of keras.applications.")
flags.DEFINE_string("weights", None, "imagenet, or the path of a file; random by default.")
flags.DEFINE_string("norm", "cbn", "The normalizer to fine-tune with.")
flags.DEFINE_integer("image_size", 96, "Height and width of the images.")
flags.DEFINE_integer("steps", 200, "Training steps of two images.")
flags.DEFINE_integer("recalibrate_steps", 4, "Batches of 32 images to measure statistics on.")
flags.DEFINE_string("directory", "runs/fine_tuning", "Where the export goes.")


def load_images() -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Digits as colour images of the network's size: (training, test), unbatched."""
    images, labels = load_digits(return_X_y=True)
    images = np.repeat(images.reshape(-1, 8, 8, 1), 3, axis=-1).astype("float32") * 15.9

    def resize(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.resize(image, [FLAGS.image_size] * 2)
        return image / 127.5 - 1, label

    whole = tf.data.Dataset.from_tensor_slices((images, labels)).map(resize)
    return whole.take(1408), whole.skip(1408)


def build_model() -> keras.Model:
    """The network with its normalizers converted, and a new head for ten classes."""
    network = getattr(keras.applications, FLAGS.network)
    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    backbone = network(weights=FLAGS.weights, include_top=False, pooling="avg", input_shape=shape)
    backbone = tfnorm.convert(backbone, FLAGS.norm)
    print(backbone.conversion_report)
    logits = keras.layers.Dense(10, name="logits")(backbone.output)
    return keras.Model(backbone.input, logits)


def main(argv: list[str]) -> None:
    """Converts, trains, recalibrates, evaluates, exports."""
    del argv
    train, test = load_images()
    model = build_model()
    model.compile(
        keras.optimizers.SGD(0.005, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    pairs = train.shuffle(1408, seed=1).repeat().batch(2)
    model.fit(pairs, steps_per_epoch=FLAGS.steps, verbose=2)
    # At two images a step the moving statistics are noisy: measure them.
    tfnorm.recalibrate(model, train.batch(32), FLAGS.recalibrate_steps)
    _, accuracy = model.evaluate(test.batch(32), verbose=0)
    print(f"test accuracy {accuracy:.3f}")
    images, _ = next(iter(test.batch(8)))
    result = tfnorm.export_saved_model(model, FLAGS.directory, examples=images.numpy())
    print(f"{result.report.folded} normalizers folded, wrote {result.path}")


if __name__ == "__main__":
    app.run(main)
