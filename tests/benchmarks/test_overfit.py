"""What benchmarks.overfit trains and evaluates, and when it says that a detector has not learnt."""

import json
import math
import types

import pytest

from benchmarks import overfit
from tfnorm import training


@pytest.mark.parametrize(
    "task, headline", [("detection", "ap"), ("instance_segmentation", "mask_ap")]
)
def test_a_norm_that_stays_below_is_named(task, headline, tmp_path, monkeypatch, capsys):
    reached = {"bn": 0.91, "gn": 0.9}

    def train(config, notice, validate):
        assert config.task == task and config.train_split == config.test_split == "train[:8]"
        assert config.augment == "none" and validate == "at_end"
        metrics = {"ap": 0.95, headline: reached[config.norm], "ap_large": math.nan}
        return types.SimpleNamespace(train_loss=0.5, metrics=metrics)

    monkeypatch.setattr(training, "train", train)
    path = tmp_path / "runs.jsonl"
    given = ["overfit", f"--task={task}", f"--output={path}"]
    assert overfit.main([*given, "--norms=bn"]) == 0
    assert overfit.main([*given, "--norms=bn,gn"]) == 1
    printed = capsys.readouterr()
    assert f"gn: {headline} below 0.9 on 8 images known by heart\n" in printed.err
    assert f"gn         loss 0.5000  {headline} 0.900" in printed.out
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["norm"], r["loss"], r[headline], r["ap_large"]) for r in records] == [
        ("bn", 0.5, 0.91, None),
        ("gn", 0.5, 0.9, None),
    ]
