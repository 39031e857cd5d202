"""Which functions suit a tensor: those of fused.py, of small.py or of channelwise.py."""

from types import ModuleType

import tensorflow as tf

from tfnorm.functional import channelwise, fused, small, xla

# On a CPU a kernel takes 45 to 120 µs to begin with. Up to so many elements the separate operations
# of forward and backward take 0.4 to 0.6 of its time.
_SMALL = 65536


def suited(x: tf.Tensor, mask: tf.Tensor | None = None) -> ModuleType:
    """The module whose functions are the best for x [G, M, C] and its mask.

    What has not a size that is known counts as large.
    """
    if not fused.applies(x, mask):
        return channelwise
    size = x.shape.num_elements()
    is_small = size is not None and size <= _SMALL and x.dtype == tf.float32 and xla.is_for_cpu()
    return small if is_small else fused
