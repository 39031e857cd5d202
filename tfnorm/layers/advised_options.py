"""Options that the papers advise for a number of images and for the length of a run."""

import math
from typing import Any

import keras

from tfnorm.schedules import LinearRamp


def brn_of_steps(steps: int) -> dict[str, Any]:
    """Ramps of r_max and d_max at 4, 19 and 31 % of a run (Ioffe 2017, section 4.1)."""
    # The paper: between steps 5,000 and 25,000 (d), 40,000 (r) of 130,000.
    start, d_end, r_end = (round(steps * share / 130) for share in (5, 25, 40))
    ramps = {"r_max": LinearRamp(1, 3, start, r_end), "d_max": LinearRamp(0, 5, start, d_end)}
    options = {name: keras.saving.serialize_keras_object(ramp) for name, ramp in ramps.items()}
    # Its moving averages have to be there when the ramps begin. At 0.99 they take some hundreds of
    # steps; where a run has not so many before, they diverge.
    return options if start >= 200 else {**options, "momentum": 0.9}


def mabn_of_steps(steps: int) -> dict[str, Any]:
    """When MABN averages and corrects, and over how many steps; in long runs as its code does."""
    options = {}
    if steps < 4000:  # The correction waits until its moving average is there: 6 time constants.
        options["correction_start_step"] = max(steps // 4, 300)
    # Averages lag by half a window, and those of the gradient's statistics diverge where a network
    # changes fast: a RetinaNet in 150 steps with a window of 16, from step 37 on.
    if steps < 400:
        options["warmup_steps"] = max(steps // 4, min(steps // 2, 75))
    if steps < 18 * 16:
        options["window"] = max(steps // 18, 1)
    return options


def cbn_of_steps(steps: int) -> dict[str, Any]:
    """A burn-in of a quarter of the run (Yao et al. 2021: 25 epochs of 100)."""
    return {"burn_in_steps": steps // 4}


def cbn_of_images(images: int) -> dict[str, Any]:
    """A window of at least 16 images, in at most 8 steps (Yao et al. 2021)."""
    return {"window": min(math.ceil(16 / images), 8)}


def on_of_steps(steps: int) -> dict[str, Any]:
    """A memory of as many images as a fortieth of the steps, of 5 to the paper's 1,000; ours.

    ON's statistics remember 1/(1 - momentum) images. With one image a step these are as many steps,
    in which the network has become another one: runs of 1,200 steps diverge with the paper's.
    """
    memory = min(max(steps / 40, 5), 1000)
    return {"momentum": round(1 - 1 / memory, 6)} if memory < 1000 else {}
