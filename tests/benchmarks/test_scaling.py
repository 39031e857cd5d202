"""The model of all-reduces against numbers worked out by hand; a tiny run of the whole."""

import json
import re

import numpy as np
import pytest

from benchmarks import scaling, scaling_report, synchronized
from benchmarks.all_reduce import Link, Payload, ring, tree
from tests.training.running import two_layers
from tfnorm import models
from tfnorm.errors import RunError, UserError

LINK = Link(latency=2e-6, bandwidth=1e9)  # 1,000 bytes take 1 µs beside the latency.


def point(replicas, *payloads):
    return scaling_report.Point("syncbn", 0, replicas, 5.0, 1.5, (1.4, 1.6), payloads)


def flags_of(*arguments):
    values = scaling._define()
    values(["scaling", *arguments])
    return values


@pytest.mark.parametrize(
    ("algorithm", "replicas", "size", "microseconds"),
    [
        (ring, 2, 4000, 2 * 1 * (2 + 2)),
        (ring, 8, 4000, 2 * 7 * (2 + 0.5)),
        (ring, 1024, 0, 2 * 1023 * 2),
        (tree, 2, 4000, 2 * 1 * (2 + 4)),
        (tree, 8, 4000, 2 * 3 * (2 + 4)),
        (tree, 9, 4000, 2 * 4 * (2 + 4)),
        (tree, 1024, 0, 2 * 10 * 2),
    ],
)
def test_formulas(algorithm, replicas, size, microseconds):
    assert algorithm(LINK, replicas, size) == pytest.approx(microseconds * 1e-6)


def test_a_ring_moves_more_data_a_second_and_a_tree_has_fewer_latencies():
    assert ring(LINK, 64, 10**9) < tree(LINK, 64, 10**9)
    assert tree(LINK, 64, 100) < ring(LINK, 64, 100)


def test_payloads_grow_as_measured():
    found = scaling.payloads([point(1), point(8, 800, 64), point(2, 200, 64), point(4, 400, 64)])
    assert found == [Payload(0, 100), Payload(64, 0)]
    assert [p.size(1024) for p in found] == [102400, 64]
    model = scaling.modelled(found, flags_of("--latency_us=2", "--bandwidth_gbs=1", "--step_ms=4"))
    expected = 1e3 * (ring(LINK, 16, 1600) + ring(LINK, 16, 64))
    assert model.milliseconds["ring"][16] == pytest.approx(expected)
    assert model.shares("ring")[16] == pytest.approx(expected / 4)
    assert model.sent[16] == 1664


def test_one_number_of_replicas_tells_no_growth():
    with pytest.raises(UserError) as error:
        scaling.payloads([point(1), point(2, 200)])
    assert str(error.value) == "the model needs syncbn measured on two numbers of replicas above 1"


def test_a_measurement_that_contradicts_the_model_is_told():
    with pytest.raises(RunError) as error:
        scaling.payloads([point(2, 200), point(4, 400), point(8, 900)])
    assert str(error.value) == "payloads of 8 replicas do not follow from those of fewer"


@pytest.mark.parametrize(
    ("limit", "least"), [(0.5, 8), (1.5, 16), (2.5, 64), (3.5, 64), (9.0, None)]
)
def test_where_it_begins_to_cost_more(limit, least):
    assert scaling_report.first_above({8: 1.0, 16: 3.0, 32: 2.0, 64: 4.0}, limit) == least


def test_a_tiny_run_measures_and_models(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "build", two_layers)
    given = ["--replicas=1,2,4", "--workers=", "--norms=bn,syncbn", "--width=4", "--rounds=2"]
    given += ["--steps_per_loop=1", "--step_ms=1", f"--output={tmp_path / 'scaling.json'}"]
    assert scaling.main(["scaling", *given, f"--plot={tmp_path / 'scaling.png'}"]) == 0
    written = json.loads((tmp_path / "scaling.json").read_text())
    points = written["measured"]
    assert [(p["norm"], p["workers"], p["replicas"], len(p["payloads"])) for p in points] == [
        ("bn", 0, 1, 0), ("syncbn", 0, 1, 0),
        ("bn", 0, 2, 0), ("syncbn", 0, 2, 4),
        ("bn", 0, 4, 0), ("syncbn", 0, 4, 4),
    ]  # fmt: skip
    assert all(p["milliseconds"] > 0 for p in points)
    assert [p["ratio"] for p in points[::2]] == [1, 1, 1]
    assert written["command"].startswith("python -m benchmarks.scaling --norms=bn,syncbn --output=")
    assert written["modelled"]["collectives"] == 4
    text = capsys.readouterr().out
    assert "] measuring 4 replicas, one process ..." in text
    assert text.index("MEASURED: resnet8 of width 4") < text.index("MODELLED: the 4 collectives")
    assert "With a ring, syncbn costs more than 10 % of a step from N = 8 on." in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_workers_are_not_taken_for_devices_of_one_process():
    points = [
        scaling_report.Point("bn", workers, replicas, 5.0, 1.0, (1.0, 1.0), ())
        for workers, replicas in ((0, 1), (1, 1), (2, 2))
    ]
    lines = scaling_report.measured_table(points, "here").splitlines()
    places = [re.split("  +", line)[1] for line in lines[-3:]]
    assert places == ["one process", "1 worker", "2 workers"]


def test_synchronized_layers_are_timed_on_the_same_work(mirrored):
    strategy = mirrored(2)

    def results(name):
        tensors = synchronized.training_pass(strategy, candidates[name], (4, 3, 5))()
        parts = map(strategy.experimental_local_results, tensors)
        return [np.stack([part.numpy() for part in of_replicas]) for of_replicas in parts]

    candidates = synchronized.candidates()
    ours, theirs, alone = map(results, ("syncbn", synchronized.BASELINE, "bn"))
    assert len(ours) == len(theirs) == 4  # y, and the gradients of x, gamma and beta
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert np.abs(ours[0] - alone[0]).max() > 1e-2
