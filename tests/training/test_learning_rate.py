import math

import pytest

from tfnorm.training.learning_rate import WarmedUp


def rates(kind, warmup, total):
    schedule = WarmedUp(kind, 0.8, warmup, total)
    return [float(schedule(step)) for step in range(total)]


def test_cosine():
    expected = [0.2, 0.4, 0.6, 0.8]
    expected += [0.4 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates("cosine", 4, 12) == pytest.approx(expected, rel=1e-5)


def test_step():
    expected = [0.4, 0.8, 0.8, 0.8, 0.08, 0.08, 0.008, 0.008]
    assert rates("step", 2, 8) == pytest.approx(expected, rel=1e-6)


def test_step_at_other_parts():
    schedule = WarmedUp("step", 0.8, 0, 10, (0.3, 0.6, 0.9))
    expected = [0.8] * 3 + [0.08] * 3 + [0.008] * 3 + [0.0008]
    assert [float(schedule(step)) for step in range(10)] == pytest.approx(expected, rel=1e-6)


def test_polynomial():
    expected = [0.2, 0.4, 0.6, 0.8, *(0.8 * (1 - step / 8) ** 0.9 for step in range(8))]
    assert rates("polynomial", 4, 12) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "step", "polynomial"])
def test_starts_at_the_peak_without_warm_up(kind):
    assert rates(kind, 0, 10)[0] == pytest.approx(0.8)


def test_a_run_shorter_than_its_warm_up():
    assert rates("cosine", 10, 3) == pytest.approx([0.08, 0.16, 0.24])


def test_config():
    schedule = WarmedUp("step", 0.8, 2, 8)
    assert WarmedUp(**schedule.get_config()).get_config() == schedule.get_config()
