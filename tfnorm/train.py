"""Trains a network under a normalizer: python -m tfnorm.train --norm=brn --model_dir=runs/brn."""

import math
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from tfnorm import commands, training
from tfnorm.errors import UserError
from tfnorm.training import flags as training_flags

_MODES = ("train_and_eval", "train", "eval")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(define_flags, _train, argv)


def define_flags() -> flags.FlagValues:
    """The flags of the command."""
    values = training_flags.define()
    flags.DEFINE_enum("mode", _MODES[0], _MODES, "What to do.", flag_values=values)
    return values


def _train(values: flags.FlagValues) -> None:
    config = training_flags.config(values)
    if not config.model_dir:
        raise UserError("no model_dir; choose where to write with --model_dir")
    if values.mode == "eval":
        evaluation = training.evaluate(config)
        measured = {"loss": evaluation.loss, **evaluation.metrics}
        print(f"{_in_words(measured)}  ({evaluation.examples} images, {evaluation.checkpoint})")
        print(_table(evaluation.metrics_by_class), end="")
    else:
        validate = values.mode == "train_and_eval"
        result = training.train(config, [training.ProgressLines()], validate=validate)
        print(_summary(result))
        print(_table(result.metrics_by_class), end="")


def _summary(result: training.Result) -> str:
    parts = [f"{result.params} parameters", f"files in {result.model_dir}"]
    if result.step_time_median is not None:
        parts.insert(1, f"{1000 * result.step_time_median:.1f} ms a step")
    if result.metrics:
        parts.insert(0, _in_words(result.metrics))
    return "  ".join(parts)


def _in_words(measured: Mapping[str, float]) -> str:
    return "  ".join(f"test {name} {value:.4f}" for name, value in measured.items())


def _table(by_class: Mapping[str, Mapping[str, float]]) -> str:
    """A line a class; nothing for tasks that measure none of them alone."""
    if not by_class:
        return ""
    names = list(next(iter(by_class.values())))
    width = max(map(len, by_class))
    lines = ["".join([" " * width, *(f"{name:>10}" for name in names)])]
    for label, row in by_class.items():
        cells = (
            f"{row[name]:10.4f}" if math.isfinite(row[name]) else f"{'-':>10}" for name in names
        )
        lines.append("".join([f"{label:{width}}", *cells]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
