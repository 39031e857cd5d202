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
