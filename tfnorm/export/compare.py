"""Are two sets of answers the same, to a tolerance?"""

from collections.abc import Mapping, Sequence

import numpy as np

from tfnorm.errors import RunError
from tfnorm.export.distance import distance, largest
from tfnorm.export.postprocessing import CLASSES, SCORES, Postprocessing
from tfnorm.export.record import Batch

Answers = Mapping[tuple[int, str], np.ndarray]  # by batch size and name of the output


def answers_of(batches: Sequence[Batch]) -> Answers:
    """What was recorded, as answers."""
    return {(b.size, name): value for b in batches for name, value in b.outputs.items()}


def compare(
    what: str,
    batches: Sequence[Batch],
    answers: Answers,
    tolerance: float,
    ranking: Postprocessing | None = None,
) -> float:
    """Compares answers with those of a model; what is not finite has to be the same.

    Args:
        what: gave the answers, for the error.
        batches: what the model answered.
        answers: to compare with it.
        tolerance: largest difference allowed, relative to the largest absolute value of an output;
            of scores, relative to what `Postprocessing.scale` says.
        ranking: what made scores of the model's output, if anything did.

    Returns:
        The largest relative difference over all batches and outputs.

    Raises:
        RunError: if an output differs by more, or in its shape, or there are other outputs.
    """
    worst = 0.0
    for batch in batches:
        outputs = sorted(name for size, name in answers if size == batch.size)
        if outputs != sorted(batch.outputs):
            raise RunError(
                f"{what} has the outputs {outputs}; expected are {sorted(batch.outputs)}."
            )
        for name, expected in batch.outputs.items():
            found = answers[batch.size, name]
            if found.shape != expected.shape:
                raise RunError(
                    f"{what} returns {name!r} in shape {found.shape} for a batch of "
                    f"{batch.size}; expected is {expected.shape}."
                )
            if not found.size:
                continue
            difference = _differences(name, batch, found, ranking)
            scale = np.broadcast_to(_scale(name, batch, batches, ranking), difference.shape)
            # The same is the same at every scale, also where a score that is NaN has none.
            ratio = np.divide(
                difference, scale, out=np.zeros_like(difference), where=difference != 0
            )
            place = np.unravel_index(np.argmax(ratio), ratio.shape)
            relative = float(ratio[place])
            if not relative <= tolerance:
                raise RunError(
                    f"{what} differs from the model: output {name!r}, batch of {batch.size}: "
                    f"largest difference {difference[place]:.3g} at a scale of "
                    f"{scale[place]:.3g}, that is {relative:.3g}; allowed is {tolerance:g}."
                )
            worst = max(worst, relative)
    return worst


def _differences(
    name: str, batch: Batch, found: np.ndarray, ranking: Postprocessing | None
) -> np.ndarray:
    if ranking is not None and name == CLASSES:
        # Two classes change places where the score of each moves by half of their distance.
        return ranking.misplaced(found, batch.scores) / 2
    return distance(found, batch.outputs[name])


def _scale(
    name: str, batch: Batch, batches: Sequence[Batch], ranking: Postprocessing | None
) -> np.ndarray | float:
    if ranking is not None:
        scores = batch.outputs[SCORES if name == CLASSES else name]
        return ranking.scale(scores, max(b.largest for b in batches))
    # Where all of an output is zero, the export has to say so, to the same tolerance.
    return max(largest(b.outputs[name]) for b in batches) or 1.0
