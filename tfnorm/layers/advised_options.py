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
    """The steps after which MABN averages and corrects; those of the official code in long runs."""
    # Averages start at step 100, or after a quarter of a run that is very short. The correction
    # starts at step 1,000, or after a quarter of the run, but not before its moving average is
    # there (300 steps are six of its time constants).
    warmup = {"warmup_steps": steps // 4} if steps < 400 else {}
    return {} if steps >= 4000 else {"correction_start_step": max(steps // 4, 300), **warmup}


def cbn_of_steps(steps: int) -> dict[str, Any]:
    """A burn-in of a quarter of the run (Yao et al. 2021: 25 epochs of 100)."""
    return {"burn_in_steps": steps // 4}


def cbn_of_images(images: int) -> dict[str, Any]:
    """A window of at least 16 images, in at most 8 steps (Yao et al. 2021)."""
    return {"window": min(math.ceil(16 / images), 8)}
