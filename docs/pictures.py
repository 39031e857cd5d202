"""Draws which values each normalizer averages over: python docs/pictures.py writes docs/pictures.

A row is a channel, a column a position of an image. Frames are images, a thick frame is what one
device holds in one step. Dark cells are what the outlined channel of the present step's first image
is normalized with; paler ones count less.
"""

import pathlib
from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

CHANNELS, POSITIONS, IMAGES, DEVICES, STEPS = 6, 3, 2, 2, 4
FOCUS = 2  # The channel whose normalization is shown.
COLOUR = "#3f51b5"

# How much a value counts, from 0 to 1: of a step back in time (0 is the present one), a device, an
# image and a channel.
Weight = Callable[[int, int, int, int], float]


def own_batch(back: int, device: int, image: int, channel: int) -> float:
    """The channel in this step's batch on this device."""
    return float(back == 0 and device == 0 and channel == FOCUS)


def all_devices(back: int, device: int, image: int, channel: int) -> float:
    """The channel in this step's batch on all devices."""
    return float(back == 0 and channel == FOCUS)


def corrected(back: int, device: int, image: int, channel: int) -> float:
    """This step's batch, corrected by the average of those before."""
    return own_batch(0, device, image, channel) * (1.0 if back == 0 else 0.25)


def window(back: int, device: int, image: int, channel: int) -> float:
    """The last steps, all alike."""
    return own_batch(0, device, image, channel)


def compensated(back: int, device: int, image: int, channel: int) -> float:
    """The last steps, as this step's kernel would have them."""
    return own_batch(0, device, image, channel) * (1.0 if back == 0 else 0.8)


def one_by_one(back: int, device: int, image: int, channel: int) -> float:
    """Every example before this one, the nearest most."""
    before = back * IMAGES - image
    is_ours = device == 0 and channel == FOCUS and before > 0
    return 0.75**before if is_ours else 0.0


def one_image(channels: range) -> Weight:
    """Some channels of the image itself."""
    return lambda back, device, image, channel: float(
        back == 0 and device == 0 and image == 0 and channel in channels
    )


def mixture(*parts: Weight) -> Weight:
    """Several kinds of statistics, mixed."""
    return lambda *where: sum(part(*where) for part in parts) / len(parts)


IMAGE_CHANNEL = one_image(range(FOCUS, FOCUS + 1))
PICTURES: dict[str, Weight] = {
    "bn": own_batch,
    "syncbn": all_devices,
    "brn": corrected,
    "mabn": window,
    "cbn": compensated,
    "on": one_by_one,
    "gn": one_image(range(FOCUS, FOCUS + 2)),
    "ln": one_image(range(CHANNELS)),
    "in": IMAGE_CHANNEL,
    "sn": mixture(IMAGE_CHANNEL, one_image(range(CHANNELS)), own_batch),
    "bin": mixture(IMAGE_CHANNEL, own_batch),
    "evalnorm": own_batch,
}


def draw(weight: Weight) -> Figure:
    """The picture of one normalizer."""
    figure = Figure(figsize=(9, 1.7))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.8))
    left = 0.0
    for back in reversed(range(STEPS)):
        label = "this step" if back == 0 else f"{back} step{'s' * (back > 1)} before"
        start = left
        for device in range(DEVICES):
            _device(axes, left, back, device, weight)
            left += IMAGES * POSITIONS + 0.8
        axes.text((start + left - 0.8) / 2, CHANNELS + 0.4, label, ha="center", fontsize=8)
        left += 1.6
    axes.set_xlim(-0.2, left - 2.2)
    axes.set_ylim(-0.2, CHANNELS + 1.6)
    axes.axis("off")
    return figure


def _device(axes: object, left: float, back: int, device: int, weight: Weight) -> None:
    for image in range(IMAGES):
        for channel in range(CHANNELS):
            for position in range(POSITIONS):
                corner = (left + image * POSITIONS + position, CHANNELS - 1 - channel)
                share = weight(back, device, image, channel)
                face = (*_rgb(COLOUR), share) if share else "#ffffff"
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="#cccccc", lw=0.4))
        frame = (left + image * POSITIONS, 0)
        axes.add_patch(Rectangle(frame, POSITIONS, CHANNELS, fill=False, edgecolor="#777777", lw=1))
    frame = (left, 0)
    width = IMAGES * POSITIONS
    axes.add_patch(Rectangle(frame, width, CHANNELS, fill=False, edgecolor="#222222", lw=1.8))
    if back == 0 and device == 0:
        corner = (left, CHANNELS - 1 - FOCUS)
        axes.add_patch(Rectangle(corner, POSITIONS, 1, fill=False, edgecolor="#d32f2f", lw=2))


def _rgb(text: str) -> tuple[float, ...]:
    return tuple(int(text[index : index + 2], 16) / 255 for index in (1, 3, 5))


def main() -> None:
    """Writes all pictures."""
    folder = pathlib.Path(__file__).parent / "pictures"
    folder.mkdir(exist_ok=True)
    for name, weight in PICTURES.items():
        figure = draw(weight)
        figure.savefig(folder / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
