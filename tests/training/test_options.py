"""Options as they are written, and those that follow from the length of a run."""

import dataclasses
import json

import keras
import pytest

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.schedules import LinearRamp
from tfnorm.training import flags, options, run_directory


def test_options_as_text_and_back():
    text = "window=4,compensate=false,covariance=full,initial_gain=0.5,r_max=ramp(1,3,200,1600)"
    found = options.parse(text, "norm_options")
    ramp = keras.saving.serialize_keras_object(LinearRamp(1, 3, 200, 1600))
    assert found == {
        "window": 4, "compensate": False, "covariance": "full", "initial_gain": 0.5, "r_max": ramp,
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert options.in_words(found) == text
    assert options.parse("a=[1,2],b={}", "x") == {"a": [1, 2], "b": {}}
    text = "r_max=ramp(1,3.1234567890123,200,1600)"
    assert options.in_words(options.parse(text, "x")) == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("window", "norm_options 'window' is not of the form name=value,name=value"),
        ("r_max=ramp(1,3,200)", "norm_options has ramp(1,3,200); it is written ramp(start_value,"),
        ("r_max=ramp(1,3,9,2)", "norm_options has ramp(1,3,9,2); it is written ramp(start_value,"),
        ("r_max=ramp(1,x,2,9)", "norm_options has ramp(1,x,2,9); it is written ramp(start_value,"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(UserError) as error:
        options.parse(text, "norm_options")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def config(*arguments):
    values = flags.define()
    values(["train", *arguments])
    return flags.config(values)


def test_ramps_are_at_the_papers_parts_of_the_run():
    """4, 19 and 31 % of 13,000 steps; a ramp from the command line wins."""
    layer_options = config("--norm=brn").normalizer(13_000).options
    r_max, d_max = (layer_options[name]["config"] for name in ("r_max", "d_max"))
    assert (r_max["start_step"], r_max["end_step"], r_max["end_value"]) == (500, 4000, 3)
    assert (d_max["start_step"], d_max["end_step"], d_max["end_value"]) == (500, 2500, 5)
    given = config("--norm=brn", "--norm_options=r_max=ramp(1,2,7,9),momentum=0.5")
    layer_options = given.normalizer(1300).options
    assert layer_options["r_max"]["config"]["end_step"] == 9
    assert layer_options["momentum"] == 0.5
    assert layer_options["d_max"]["config"]["end_step"] == 250
    assert given.normalizer().options == dict(given.norm_options)


@pytest.mark.parametrize(
    "norm, steps, expected",
    [
        ("cbn", 400, {"burn_in_steps": 100}),
        ("mabn", 4000, {}),
        ("mabn", 1200, {"correction_start_step": 300}),
        ("mabn", 300, {"correction_start_step": 300, "warmup_steps": 75}),
        ("mabn", 150, {"correction_start_step": 300, "warmup_steps": 75, "window": 8}),
        ("mabn", 3, {"correction_start_step": 300, "warmup_steps": 1, "window": 1}),
        ("on", 100, {"momentum": 0.8}),
        ("on", 800, {"momentum": 0.95}),
        ("on", 39_000, {"momentum": 0.998974}),
        ("on", 40_000, {}),
        ("bn", 400, {}),
    ],
)
def test_burn_in_warm_up_correction_and_memory(norm, steps, expected):
    assert config(f"--norm={norm}").normalizer(steps).options == expected


def test_a_run_made_longer_keeps_its_window(small, tmp_path, notices):
    """The histories in its checkpoints have that shape; all else follows from the new length."""
    short = small(norm="mabn", steps=4, train_examples=16, model_dir=str(tmp_path))
    training.train(short, notice=notices.append, validate=False)
    assert notices[-1].endswith("correction_start_step=300,warmup_steps=2,window=1")
    assert training.load_model(str(tmp_path))[0].layers[2].window == 1
    longer = dataclasses.replace(short, steps=36)
    assert longer.options_of_run(36)["window"] == 2
    again = training.train(longer, notice=notices.append, validate=False)
    assert notices[-1].endswith("correction_start_step=300,warmup_steps=18,window=1")
    assert again.model.layers[2].window == 1
    assert training.evaluate(dataclasses.replace(longer, steps=4000)).loss > 0
    assert "window" not in longer.options_of_run(36, 4000)


def test_a_run_of_an_older_checkpoint_keeps_the_window_of_layers(
    small, tmp_path, notices, monkeypatch
):
    """It did not follow from the length of runs then, nor do checkpoints say that."""
    older = small(norm="mabn", steps=4, train_examples=16, model_dir=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "planned_calls", lambda directory: 0)
        training.train(older, notice=notices.append, validate=False)
    assert training.load_model(str(tmp_path))[0].layers[2].window == 16
    assert training.evaluate(older).loss > 0
    longer = dataclasses.replace(older, steps=36)
    assert (
        training.train(longer, notice=notices.append, validate=False).model.layers[2].window == 16
    )
    assert notices[-1].endswith("correction_start_step=300,warmup_steps=18")


def test_a_run_prints_them_and_its_layers_have_them(small, notices):
    result = training.train(small(norm="cbn", accumulate_steps=2, epochs=4), notice=notices.append)
    # 3 steps an epoch, of two micro-batches each.
    assert "cbn in 24 steps: --norm_options=burn_in_steps=6" in notices
    assert result.model.layers[1].burn_in_steps == 6
