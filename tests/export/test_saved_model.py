"""Writing SavedModels: versions, signatures, contents, and what is left after a failure."""

import json
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm.errors import UserError
from tfnorm.export import export_saved_model, fold, saved_model

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
    }
    shapes = [
        shape
        for name, shape in tf.train.list_variables(str(result.path / "variables/variables"))
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]
    assert sorted(shapes) == sorted(list(w.shape) for w in fold(model)[0].weights)
    weights = 4 * sum(math.prod(shape) for shape in shapes)
    stored = (result.path / "variables/variables.data-00000-of-00001").stat().st_size
    assert weights <= stored <= 1.05 * weights
    graph = (result.path / "saved_model.pb").read_bytes()
    for trace in (b"tfnorm", b"keras", str(pathlib.Path.cwd()).encode(), b".py", b"/tmp"):
        assert trace not in graph
    stored_report = json.loads((result.path / "assets.extra/fold_report.json").read_text())
    assert stored_report == result.report.to_dict()
    assert stored_report["folded"] == 1


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


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def half_written(model, folded, path):
        path.mkdir(exist_ok=True)
        (path / "saved_model.pb").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(saved_model, "_write", half_written)
    with pytest.raises(KeyboardInterrupt):
        export_saved_model(small(), tmp_path, verify=False)
    assert names(tmp_path) == []


def test_a_rename_that_fails_is_not_repeated_for_ever(tmp_path, monkeypatch):
    def refused(draft, place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "rename", refused)
    with pytest.raises(PermissionError):
        export_saved_model(small(), tmp_path, verify=False)
    assert names(tmp_path) == []
