"""A training loop of your own on many workers: python examples/multi_worker.py [workers].

Keras' fit does not run under MultiWorkerMirroredStrategy; a loop on strategy.run does. Without
TF_CONFIG this program starts itself on so many workers of this machine.
"""

import os
import sys

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tfnorm.layers import MovingAverageBatchNormalization, WeightCentralization
from tfnorm.layers.replicas import synchronize_statistics
from tfnorm.training import local_cluster, workers

BATCH = 4  # Images of a replica.


def build_model() -> keras.Model:
    """MABN: statistics of the last 16 steps of a replica, and no communication for them."""
    images = keras.Input((8, 8, 1), name="image")
    x = WeightCentralization(keras.layers.Conv2D(32, 3, use_bias=False))(images)
    x = keras.layers.ReLU()(MovingAverageBatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10, name="logits")(x))


def main(steps: int = 400) -> float:
    """One worker: trains, and returns the accuracy on the test images."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    replicas = strategy.num_replicas_in_sync
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    keras.utils.set_random_seed(0)  # The same weights on every worker.
    with strategy.scope():
        model = build_model()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)

    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        """Each worker's own part of the first 1,408 images."""
        data = tf.data.Dataset.from_tensor_slices((images[:1408], labels[:1408].astype("int32")))
        data = data.shard(context.num_input_pipelines, context.input_pipeline_id)
        return data.shuffle(1408, seed=0).repeat().batch(BATCH)

    def replica_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True), True)
            loss = tf.reduce_sum(losses) / (BATCH * replicas)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)  # Sums over all replicas.
        return loss

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(replica_step, (x, y)), axis=None)

    iterator = iter(strategy.distribute_datasets_from_function(batches))
    for number in range(steps):
        loss = step(*next(iterator))
        if workers.is_chief(strategy) and (number + 1) % 100 == 0:
            print(f"step {number + 1}  loss {loss:.4f}")

    synchronize_statistics(model)  # All workers take part; now each holds the same model.
    logits = model(images[1408:], training=False)
    accuracy = float(np.mean(np.argmax(logits, -1) == labels[1408:]))
    if workers.is_chief(strategy):
        print(f"{replicas} replicas: test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        main()
    else:
        command = [sys.executable, __file__]
        sys.exit(local_cluster.run(int((*sys.argv[1:], 2)[0]), command))
