"""Writing SavedModels: versions, signatures, contents, and what is left after a failure."""

import json
import math
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm.errors import RunError, UserError
from tfnorm.export import export_saved_model, fold, saved_model
from tfnorm.files import DRAFT

L = keras.layers


def small(name="image"):
    x = keras.Input((8, 8, 3), name=name)
    y = L.BatchNormalization()(L.Conv2D(4, 3, use_bias=False)(x))
    return keras.Model(x, L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(L.ReLU()(y))))


def served(path):
    return tf.saved_model.load(str(path)).signatures["serving_default"]


def names(directory):
    return sorted(p.name for p in pathlib.Path(directory).iterdir())


def test_versions_count_up(tmp_path):
    for name in ("7", "backup", "x8"):
        (tmp_path / name).mkdir()
    result = export_saved_model(small(), tmp_path, verify=False)
    assert (result.version, result.path) == (8, tmp_path / "8")
    assert names(tmp_path) == ["7", "8", "backup", "x8"]
    assert export_saved_model(small(), tmp_path / "new" / "base", verify=False).version == 1


def test_another_export_takes_the_number_meanwhile(tmp_path, monkeypatch):
    rename = pathlib.Path.rename

    def taken_at_first(draft, place):
        if place.name == "1":
            (place / "saved_model").mkdir(parents=True)
        return rename(draft, place)

    monkeypatch.setattr(pathlib.Path, "rename", taken_at_first)
    assert export_saved_model(small(), tmp_path, verify=False).version == 2
    assert names(tmp_path) == ["1", "2"]


def test_signature_and_answers(randomized, rng, tmp_path):
    model = randomized(small("my-image"))
    serve = served(export_saved_model(model, tmp_path, verify=False).path)
    (spec,) = serve.structured_input_signature[1].values()
    assert (spec.name, spec.shape.as_list()) == ("my-image", [None, 8, 8, 3])
    for batch in (1, 5):
        x = rng.normal(size=(batch, 8, 8, 3)).astype("float32")
        answer = serve(**{"my-image": tf.constant(x)})
        np.testing.assert_allclose(answer["logits"], model(x), rtol=1e-4, atol=1e-6)


def test_names_of_many_inputs_and_outputs(randomized, rng, tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b", dtype="int32")
    left, right = keras.Input((4,)), keras.Input((4,))
    pair = keras.Model([left, right], [left + right, left - right], name="pair")
    y = pair([a, L.Embedding(3, 4)(b)[:, 0]])
    model = randomized(keras.Model({"b": b, "a": a}, {"sum": y[0], "more": [y[1], L.Dense(2)(a)]}))
    serve = served(export_saved_model(model, tmp_path, verify=False).path)
    inputs = {"a": rng.normal(size=(2, 4)).astype("float32"), "b": rng.integers(0, 3, (2, 4))}
    inputs["b"] = inputs["b"].astype("int32")
    answer = serve(**{name: tf.constant(x) for name, x in inputs.items()})
    expected = model(inputs)
    assert sorted(answer) == ["more_0", "more_1", "sum"]
    np.testing.assert_allclose(answer["more_1"], expected["more"][1], rtol=1e-5)

    flat = keras.Model([a, b], y)
    answer = served(export_saved_model(flat, tmp_path, verify=False).path)
    assert sorted(answer.structured_outputs) == ["pair_0", "pair_1"]


def test_sequential(rng, tmp_path):
    layers = [keras.Input((4,), name="x"), L.Dense(3), L.BatchNormalization(name="norm")]
    model = keras.Sequential(layers)
    x = rng.normal(size=(2, 4)).astype("float32")
    answer = served(export_saved_model(model, tmp_path, verify=False).path)(x=tf.constant(x))
    np.testing.assert_allclose(answer["norm"], model(x), rtol=1e-5, atol=1e-6)


def stored_weights(path):
    """Name, shape and dtype of what lies in a SavedModel's checkpoint."""
    reader = tf.train.load_checkpoint(str(path / "variables/variables"))
    return [
        (name, shape, reader.get_variable_to_dtype_map()[name])
        for name, shape in reader.get_variable_to_shape_map().items()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]


def test_holds_the_folded_weights_and_no_more(randomized, tmp_path):
    x = keras.Input((8, 8, 3))
    y = tfnorm.layers.CrossIterationBatchNormalization(L.Conv2D(64, 3, use_bias=False))(x)
    y = L.Dropout(0.5)(L.Flatten()(L.ReLU()(y)))
    model = randomized(keras.Model(x, L.Dense(9)(y)))
    result = export_saved_model(model, tmp_path, verify=False)
    files = {str(p.relative_to(result.path)) for p in result.path.rglob("*") if p.is_file()}
    assert files == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets.extra/fold_report.json",
        "assets.extra/model_card.json",
        "assets.extra/model_card.md",
    }
    shapes = [shape for _, shape, _ in stored_weights(result.path)]
    assert sorted(shapes) == sorted(list(w.shape) for w in fold(model)[0].weights)
    weights = 4 * sum(math.prod(shape) for shape in shapes)
    stored = (result.path / "variables/variables.data-00000-of-00001").stat().st_size
    assert weights <= stored <= 1.05 * weights
    graph = (result.path / "saved_model.pb").read_bytes()
    for trace in (b"tfnorm", b"keras", b".py"):
        assert trace not in graph
    stored_report = json.loads((result.path / "assets.extra/fold_report.json").read_text())
    assert stored_report == result.report.to_dict()
    assert stored_report["folded"] == 1


def test_is_as_large_as_its_weights_and_names_no_place(randomized, rng, tmp_path):
    x = keras.Input((8, 8, 3), name="image")
    y = tfnorm.layers.WeightCentralization(L.Conv2D(64, 3, use_bias=False))(x)
    y = L.Flatten()(tfnorm.layers.MovingAverageBatchNormalization()(y))
    model = randomized(keras.Model(x, L.Dense(200)(y)))
    model.compile("adam", "mse")
    model.fit(rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(2, 200)), verbose=0)
    training = {"norm": "mabn", "model_dir": str(tmp_path / "run"), "data_dir": None, "steps": 1}
    result = export_saved_model(model, tmp_path, verify=False, training=training)
    files = [path for path in result.path.rglob("*") if path.is_file()]
    weights = 4 * fold(model)[0].count_params()
    assert weights < sum(path.stat().st_size for path in files) < 1.05 * weights
    for path in files:
        for place in (str(tmp_path), str(pathlib.Path.cwd()), "/tmp", DRAFT):
            assert place.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_half_the_bytes(dtype, randomized, rng, tmp_path):
    model = randomized(small())
    result = export_saved_model(model, tmp_path, weights_dtype=dtype, verify=False)
    stored = {tuple(shape): found.name for _, shape, found in stored_weights(result.path)}
    assert stored == {(3, 3, 3, 4): dtype, (4, 3): dtype, (4,): "float32", (3,): "float32"}
    rounded = fold(model)[0]
    for weight in rounded.weights:
        if len(weight.shape) > 1:
            weight.assign(tf.cast(tf.cast(tf.constant(weight), dtype), "float32"))
    x = rng.normal(size=(5, 8, 8, 3)).astype("float32")
    answer = served(result.path)(image=tf.constant(x))["logits"]
    np.testing.assert_allclose(answer, rounded(x), rtol=1e-5, atol=1e-6)  # computed in float32
    assert np.max(np.abs(answer - model(x))) > 1e-5


def test_rounding_that_moves_the_outputs_too_far(randomized, tmp_path):
    model = randomized(small())
    before = model.get_weights()
    with pytest.raises(RunError) as error:
        export_saved_model(model, tmp_path, weights_dtype="bfloat16", tolerance=1e-6)
    number = r"[\d.e+-]+"
    assert re.fullmatch(
        rf"The model with weights in bfloat16 differs from the model: output 'logits', batch of "
        rf"\d+: largest difference {number} at a scale of {number}, that is {number}; allowed is "
        r"1e-06\.",
        str(error.value),
    )
    assert names(tmp_path) == []
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_the_dtype_cannot_hold(tmp_path):
    model = small()
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 0 + 7e4)
    with pytest.raises(UserError) as error:
        export_saved_model(model, tmp_path, weights_dtype="float16", verify=False)
    assert str(error.value) == (
        "The weight 'logits/kernel' has values that float16 cannot hold. Choose "
        "weights_dtype='bfloat16', which has the range of float32, or none."
    )
    with pytest.raises(UserError) as error:
        export_saved_model(model, tmp_path, weights_dtype="int8", verify=False)
    assert str(error.value) == (
        "Weights cannot be stored as 'int8'. Choose one of float16, bfloat16, or leave "
        "weights_dtype out to store them as they are."
    )
    assert names(tmp_path) == []


def test_fixed_batch_stays_fixed(tmp_path):
    x = keras.Input(batch_shape=(4, 3), name="x")
    result = export_saved_model(keras.Model(x, L.Dense(2)(x)), tmp_path, verify=False)
    assert served(result.path).structured_input_signature[1]["x"].shape.as_list() == [4, 3]


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (("file", "File exists"), ("file/below", "Not a directory")):
        with pytest.raises(UserError) as error:
            export_saved_model(small(), tmp_path / path, verify=False)
        assert str(error.value) == (
            f"Cannot write to the directory {str(tmp_path / path)!r}: {reason}. "
            "Choose a directory that exists, or can be made, and that you may write to."
        )


@pytest.mark.parametrize("directory", ["", "made/for/it"])
def test_nothing_is_left_of_a_failure(directory, tmp_path, monkeypatch):
    """Neither a draft nor a directory, whatever ends an export; what was there stays."""
    (tmp_path / "1").mkdir()
    full = tf.errors.ResourceExhaustedError(
        None, None, "{{function_node f}} /x/part-0; No space left on device [Op:SaveV2]"
    )
    text = f"Cannot write the export to {str(tmp_path / directory)!r}: {{}}. What was there"
    failures = {
        KeyboardInterrupt("^C"): (KeyboardInterrupt, "^C"),
        ValueError("of ours"): (ValueError, "of ours"),
        full: (RunError, text.format("/x/part-0; No space left on device")),
        OSError(28, "No space left"): (RunError, text.format(r"[Errno 28] No space left")),
        # What has nothing to do with where the export goes is said as it is.
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"): (
            tf.errors.ResourceExhaustedError,
            "OOM when allocating",
        ),
        FileNotFoundError(2, "No such file", "flatc"): (FileNotFoundError, "flatc"),
    }
    for failure, (kind, message) in failures.items():

        def half_written(folded, signature, path, dtype, failure=failure):
            (path / "saved_model.pb").write_text("half")
            raise failure

        monkeypatch.setattr(saved_model, "write_saved_model", half_written)
        with pytest.raises(kind, match=re.escape(message)):
            export_saved_model(small(), tmp_path / directory, verify=False)
        assert names(tmp_path) == ["1"]


def test_a_rename_that_fails_is_not_repeated_for_ever(tmp_path, monkeypatch):
    def refused(draft, place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "rename", refused)
    with pytest.raises(RunError, match="Permission denied"):
        export_saved_model(small(), tmp_path, verify=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_sizes": ()}, "batch_sizes must be a list of whole numbers from 1"),
        ({"batch_sizes": (2, -1)}, "batch_sizes must be a list of whole numbers from 1"),
        ({"warmup_batch_sizes": 4}, "warmup_batch_sizes must be a list of whole numbers from 1"),
        ({"formats": "saved_model"}, "formats is a list, received 'saved_model'. Give "),
        ({"calibration": np.ones(3)}, "calibration is for quantize, which is not given"),
        ({"evaluation": (np.ones(3), [0])}, "evaluation is for quantize, which is not given"),
        ({"examples": [None]}, "The examples must be arrays"),
        ({"examples": [[[1.0] * 4] * 5] * 2}, "Received arrays of shape "),
    ],
)
def test_what_cannot_be_meant(options, message, tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(x))
    with pytest.raises(UserError) as error:
        export_saved_model(model, tmp_path / "out", **options)
    assert message in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("directory", ["", None, 3])
def test_a_directory_that_is_none(directory):
    x = keras.Input((4,), name="x")
    with pytest.raises(UserError, match="directory must be a path"):
        export_saved_model(keras.Model(x, keras.layers.Dense(2)(x)), directory)


def test_a_directory_that_cannot_be_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "fold", None)
    (tmp_path / "file").write_text("")
    x = keras.Input((4,), name="x")
    with pytest.raises(UserError, match="Cannot write to the directory"):
        export_saved_model(keras.Model(x, keras.layers.Dense(2)(x)), tmp_path / "file" / "out")


def test_formats_from_a_generator(tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(x))
    formats = (name for name in ["saved_model"])
    result = export_saved_model(model, tmp_path, formats=formats, verify=False)
    assert (result.path / "saved_model.pb").exists()
