"""What the normalizers share that take statistics of single examples at inference too."""

import tensorflow as tf


class OfExamples:
    """Inference by the statistics of each example: not affine, so that nothing folds.

    A class before `ChannelNormalization`; a layer writes `infer`.
    """

    takes_ragged = False

    def normalize_for_inference(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inference without a mask."""
        return self.infer(inputs, None)

    def inference_scale_and_offset(self) -> None:
        """None: at inference it is no affine map."""
        return


class Mixture(OfExamples):
    """Of statistics of each example and of the batch: at inference, of the moving ones.

    A layer writes `mix(inputs, *moving, mask=..., groups=..., then=...)`, which gives the outputs
    and, in training, the `Moments` of each group; `moving` is what takes the place of the batch's
    mean and variance, and `then` what is made of these moments.
    """

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the mixture with the statistics of each group."""
        then = self.then_move()
        outputs, own = self.mix(inputs, mask=mask, groups=self.virtual_replicas, then=then)
        self.keep_moved(then, own.derived)
        return outputs

    def infer(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the mixture with the moving statistics."""
        moving = self.moving_mean, self.moving_variance
        outputs, _ = self.mix(inputs, tuple(map(tf.convert_to_tensor, moving)), mask=mask)
        return outputs
