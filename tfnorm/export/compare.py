"""Are two sets of answers the same, to a tolerance?"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfnorm.errors import RunError
from tfnorm.export.record import Batch
from tfnorm.serving.distance import distance, largest
from tfnorm.serving.interface import Arrays, ChoosesInside, Error, Postprocessor

Answers = Mapping[tuple[int, str], np.ndarray]  # by batch size and name of the output


def answers_of(batches: Sequence[Batch]) -> Answers:
    """What was recorded, as answers."""
    return {(b.size, name): value for b in batches for name, value in b.outputs.items()}


def compare(
    what: str,
    batches: Sequence[Batch],
    answers: Answers,
    tolerance: float,
    postprocessing: Postprocessor | None = None,
) -> float:
    """Compares answers with those of a model; what is not finite has to be the same.

    Args:
        what: gave the answers, for the error.
        batches: what the model answered.
        answers: to compare with it.
        tolerance: largest difference allowed, relative to the largest absolute value of an output;
            with postprocessing, relative to what its `errors` say.
        postprocessing: what made the answers of the model's outputs, if anything did.

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
            shape = answers[batch.size, name].shape
            if shape != expected.shape:
                raise RunError(
                    f"{what} returns {name!r} in shape {shape} for a batch of "
                    f"{batch.size}; expected is {expected.shape}."
                )
        for name, error in _errors(batch, batches, answers, postprocessing).items():
            difference = error.difference
            if not difference.size:
                continue
            scale, ratio = np.broadcast_to(error.scale, difference.shape), error.ratio()
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


def compare_outputs(
    what: str,
    batches: Sequence[Batch],
    answers: Answers,
    tolerance: float,
    postprocessing: Postprocessor,
) -> float:
    """As `compare`, of what a network returns itself, before postprocessing.

    Element by element, or as the postprocessing of a network has it whose own outputs jump.
    """
    before = [dataclasses.replace(batch, outputs=batch.before) for batch in batches]
    rule = _Inside(postprocessing) if isinstance(postprocessing, ChoosesInside) else None
    return compare(what, before, answers, tolerance, rule)


@dataclasses.dataclass(frozen=True)
class _Inside:
    """Compares as `Postprocessor.errors` does, what a network chooses inside of itself."""

    postprocessing: ChoosesInside

    def errors(
        self, found: Arrays, expected: Arrays, scores: object, largest: float
    ) -> dict[str, Error]:
        del scores, largest
        return self.postprocessing.inner_errors(found, expected)


def _errors(
    batch: Batch,
    batches: Sequence[Batch],
    answers: Answers,
    postprocessing: Postprocessor | None,
) -> dict[str, Error]:
    found = {name: answers[batch.size, name] for name in batch.outputs}
    if postprocessing is not None:
        of_model = max(b.largest for b in batches)
        return postprocessing.errors(found, batch.outputs, batch.scores, of_model)
    # Where all of an output is zero, the export has to say so, to the same tolerance.
    return {
        name: Error(
            distance(found[name], expected), max(largest(b.outputs[name]) for b in batches) or 1.0
        )
        for name, expected in batch.outputs.items()
    }
