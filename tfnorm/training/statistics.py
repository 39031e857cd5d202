"""Batch statistics of micro-batches, forward and backward, and how noisy they are: NumPy only.

The notation is that of Yan et al., "Towards Stabilizing Batch Statistics in Backward Propagation of
Batch Normalization", 2020, section 3. With x what is normalized, ŷ what it is normalized to,
z = γ·ŷ + β what the layer returns, G = ∂L/∂ŷ = γ·∂L/∂z, and means over a batch:
μ_B = mean(x), σ²_B = mean((x − μ_B)²), g_B = mean(G), Ψ_B = mean(G·ŷ) = mean(∂L/∂z·(z − β)).
"""

import math
from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """The statistics of K micro-batches, each [K, C] float64.

    Attributes:
        mean: μ_B.
        variance: σ²_B, or χ²_B = mean(x²) of a method that subtracts no mean.
        gradient: g_B.
        gradient_product: Ψ_B.
        gradient_square: mean(G²), the scale of the two before.
        count: [K, 1], how many positions each mean is over.
    """

    mean: np.ndarray
    variance: np.ndarray
    gradient: np.ndarray
    gradient_product: np.ndarray
    gradient_square: np.ndarray
    count: np.ndarray


NAMES = ("mean", "variance", "gradient", "gradient_product")


def merge(parts: Statistics) -> Statistics:
    """The statistics of all micro-batches as one large batch, K = 1.

    Means are weighted by count; the variance is that about the common mean.
    """
    weight = parts.count / parts.count.sum()

    def common(values: np.ndarray) -> np.ndarray:
        return (weight * values).sum(0, keepdims=True)

    mean = common(parts.mean)
    return Statistics(
        mean,
        common(parts.variance + np.square(parts.mean - mean)),
        *map(common, parts[2:5]),
        parts.count.sum(keepdims=True),
    )


def about_zero(statistics: Statistics) -> Statistics:
    """The mean square in place of the variance."""
    return statistics._replace(variance=statistics.variance + np.square(statistics.mean))


class Noise(NamedTuple):
    """Root mean square error of micro-batches' statistics against the large batch's.

    Each is relative, so that for n independent samples in a micro-batch it is about 1/√n: of the
    mean to σ, of the variance to σ² (√2/√n for a normal distribution), of both gradient statistics
    to the root mean square of G. Activations of one image are not independent: where they are all
    alike n is the number of images, else up to the number of positions.
    """

    mean: float
    variance: float
    gradient: float
    gradient_product: float

    @property
    def forward(self) -> float:
        """What it does to ŷ: root mean square error, where ŷ has the standard deviation 1.

        An error of μ shifts ŷ by δμ/σ, one of σ² scales it by 1 − δσ²/2σ².
        """
        return math.hypot(self.mean, self.variance / 2)

    @property
    def backward(self) -> float:
        """What it does to σ·∂L/∂x = G − g_B − ŷ·Ψ_B: relative root mean square error."""
        return math.hypot(self.gradient, self.gradient_product)


def noise(parts: Statistics, large: Statistics, epsilon: float) -> Noise:
    """How far the statistics of micro-batches are from the large batch's, which is made of them.

    Args:
        parts: Of K micro-batches, K > 1.
        large: Of all of them together.
        epsilon: What the method adds to the variance, so that channels that are 0 everywhere do
            not count as noisy.
    """
    # As K/(K − 1), because the large batch has the micro-batches' own deviations in it.
    bessel = len(parts.count) / (len(parts.count) - 1)

    def error(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return bessel * np.square(values - truth).mean(0, keepdims=True)

    variance = large.variance + epsilon
    power = large.gradient_square.sum() or 1.0  # All 0: so are the errors.
    return Noise(
        math.sqrt((error(parts.mean, large.mean) / variance).mean()),
        math.sqrt((error(parts.variance, large.variance) / np.square(variance)).mean()),
        math.sqrt(error(parts.gradient, large.gradient).sum() / power),
        math.sqrt(error(parts.gradient_product, large.gradient_product).sum() / power),
    )
