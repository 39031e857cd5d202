"""The scale of pixels that a network was made for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PixelScaling:
    """A network is fed (pixel / 255 − mean) / std, pixels from 0 to 255 in the order R, G, B.

    It is what `tfnorm.export.Preprocessing(mean, std)` does to uint8 images in an export.

    Attributes:
        mean: for each channel.
        std: for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
