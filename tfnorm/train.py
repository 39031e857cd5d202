"""Trains a network under a normalizer: python -m tfnorm.train --norm=brn --model_dir=runs/brn."""

import sys
from collections.abc import Sequence

from absl import flags

from tfnorm import commands
from tfnorm.errors import UserError

_MODES = ("train_and_eval", "train", "eval")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, _train, argv)


def _define() -> flags.FlagValues:
    from tfnorm.training import flags as training_flags

    values = training_flags.define()
    flags.DEFINE_enum("mode", _MODES[0], _MODES, "What to do.", flag_values=values)
    return values


def _train(values: flags.FlagValues) -> None:
    # Imported late: TensorFlow's start is to be quiet, and an error in a flag quick.
    from tfnorm import training
    from tfnorm.training import flags as training_flags

    config = training_flags.config(values)
    if not config.model_dir:
        raise UserError("no model_dir; choose where to write with --model_dir")
    if values.mode == "eval":
        evaluation = training.evaluate(config)
        print(
            f"test loss {evaluation.loss:.4f}  test accuracy {evaluation.accuracy:.4f}  "
            f"({evaluation.examples} images, {evaluation.checkpoint})"
        )
        return
    validate = values.mode == "train_and_eval"
    result = training.train(config, [training.ProgressLines()], validate=validate)
    accuracy = f"test accuracy {result.test_accuracy:.4f}  " if validate else ""
    step_time = f"{1000 * result.step_time_median:.1f} ms a step" if result.step_time_median else ""
    print(f"{accuracy}{result.params} parameters  {step_time}  {config.model_dir}")


if __name__ == "__main__":
    sys.exit(main())
