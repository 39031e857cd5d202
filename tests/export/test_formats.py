"""LiteRT and ONNX beside the SavedModel, each run by its own runtime."""

import dataclasses
import importlib.util
import logging
import sys

import keras
import pytest
import tensorflow as tf

import tfnorm
from tfnorm.errors import RunError, UserError
from tfnorm.export import Postprocessing, Preprocessing, export_saved_model, formats
from tfnorm.layers import norms

L = keras.layers


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


EXTRAS = [
    pytest.param("litert", "model.tflite", marks=needs("ai_edge_litert")),
    pytest.param("onnx", "model.onnx", marks=needs("tf2onnx", "onnx", "onnxruntime")),
]
FILES = {"litert": "model.tflite", "onnx": "model.onnx"}


def classifier(name="image"):
    x = keras.Input((8, 8, 3), name=name)
    y = L.Conv2D(4, 3, use_bias=False)(x)
    y = L.ReLU()(tfnorm.layers.BatchRenormalization()(y))
    y = L.GroupNormalization(2)(L.Conv2D(4, 1)(y))
    return keras.Model(x, L.Dense(5, name="logits")(L.GlobalAveragePooling2D()(y)))


@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_beside_a_saved_model_and_alone(name, file, randomized, tmp_path):
    model = randomized(classifier())
    both = export_saved_model(model, tmp_path, formats=["saved_model", name])
    runtime = formats.FORMATS[name].runtimes
    assert both.verification.runtimes == ("tensorflow_python", "tensorflow_c", *runtime)
    assert 0 < both.verification.difference < 1e-5
    assert (both.path / file).is_file()
    assert (both.path / "saved_model.pb").is_file()
    alone = export_saved_model(model, tmp_path, formats=[name])
    assert alone.verification.runtimes == runtime
    assert sorted(p.name for p in alone.path.iterdir()) == ["assets.extra", file]
    assert str(tmp_path).encode() not in (alone.path / file).read_bytes()


@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_pixels_in_and_names_out(name, file, randomized, tmp_path):
    result = export_saved_model(
        randomized(classifier("my-image")),
        tmp_path,
        formats=[name],
        preprocessing=Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize=True),
        postprocessing=Postprocessing(top_k=2, label_names=["Kätzchen", "b", "c", "d", "e"]),
        weights_dtype="bfloat16",
    )
    assert result.verification.batch_sizes == (1, 3, 32)


@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_many_inputs_and_outputs(name, file, randomized, tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b", dtype="int32")
    scaled = L.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[4.0, 5.0, 6.0, 7.0])(a)
    y = scaled + L.Flatten()(L.Embedding(3, 4)(b)[:, 0])
    model = randomized(keras.Model({"b": b, "a": a}, {"sum": y, "more": [L.Dense(2)(a), y * y]}))
    assert export_saved_model(model, tmp_path, formats=[name]).verification.difference < 1e-5


@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_grouped_convolutions_and_tensors_returned_twice(name, file, randomized, tmp_path):
    x = keras.Input((8, 8, 6), name="x")
    y = L.BatchNormalization()(L.Conv2D(4, 3, groups=2)(x))
    z = L.DepthwiseConv2D(3, depth_multiplier=2)(y)
    sequence = L.Conv1D(6, 3, groups=3)(L.Reshape((64, 6))(x))
    model = randomized(keras.Model(x, [y, z, sequence, y, L.Identity()(x)]))
    result = export_saved_model(model, tmp_path, formats=[name])
    assert result.verification.difference < 1e-5
    assert not tf.config.functions_run_eagerly()


@pytest.mark.parametrize(("name", "file"), EXTRAS[1:])
def test_one_name_for_an_input_and_an_output(name, file, tmp_path):
    x = keras.Input((4,), name="x")
    with pytest.raises(RunError) as error:
        export_saved_model(keras.Model(x, {"x": L.Dense(3)(x)}), tmp_path, formats=[name])
    assert str(error.value) == (
        "The model cannot be converted to onnx: an input and an output are called 'x', and ONNX "
        "has one namespace for both. Give the output's layer, or its key, another name."
    )


@pytest.mark.parametrize(("name", "file"), EXTRAS[1:])
def test_loops_stay_loops(name, file, randomized, tmp_path):
    x = keras.Input((None, 6), name="x")
    model = randomized(keras.Model(x, L.Dense(3)(L.LSTM(4)(x))))
    assert export_saved_model(model, tmp_path, formats=[name]).verification.difference < 1e-5


@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_an_operation_that_the_format_has_not(name, file, tmp_path, capfd):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.ops.erfinv(keras.ops.tanh(x)))
    with pytest.raises(RunError) as error:
        export_saved_model(model, tmp_path / "out", formats=[name], verify=False)
    assert str(error.value) == {
        "litert": "The model cannot be converted to litert: "
        "'tf.Erfinv' op is neither a custom op nor a flex op",
        "onnx": "The model cannot be converted to onnx: "
        "No Op registered for Erfinv with domain_version of 18",
    }.get(name)
    assert list(tmp_path.iterdir()) == []
    assert "tf2onnx" not in capfd.readouterr().err


@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_a_wrong_conversion_is_found(name, file, randomized, tmp_path, monkeypatch):
    model, other = randomized(classifier()), randomized(classifier())
    wrong = export_saved_model(other, tmp_path / "other", formats=[name], verify=False).path / file

    def swapped(path, answering):
        (path / file).write_bytes(wrong.read_bytes())

    format = formats.FORMATS[name]
    swapped = formats.Format(format.runtimes, format.modules, swapped)
    monkeypatch.setitem(formats.FORMATS, name, swapped)
    with pytest.raises(RunError, match="differs from the model: output 'logits'"):
        export_saved_model(model, tmp_path / "export", formats=[name])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("name", "modules"),
    [("litert", ["ai_edge_litert"]), ("onnx", ["tf2onnx", "onnx", "onnxruntime"])],
)
def test_what_is_not_installed(name, modules, tmp_path, monkeypatch):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        export_saved_model(classifier(), tmp_path / "out", formats=["saved_model", name])
    assert str(error.value) == (
        f"The format {name} needs {', '.join(modules)}, not installed here: "
        f"pip install 'tfnorm[{name}]'"
    )
    assert not (tmp_path / "out").exists()


def test_unknown_format(tmp_path):
    for given in (["saved_model", "tflite"], [""]):
        with pytest.raises(UserError) as error:
            export_saved_model(classifier(), tmp_path, formats=given)
        assert str(error.value) == (
            f"There is no format {given[-1]!r}. Choose from saved_model, litert, onnx."
        )


def test_converter_that_refuses(tmp_path, monkeypatch, capsys):
    def refuse(path, answering):
        print("a lot")
        logging.getLogger("tf2onnx").error("of talk")
        raise NotImplementedError("no such operation\npages of notes")

    monkeypatch.setitem(formats.FORMATS, "litert", formats.Format(("litert",), (), refuse))
    with pytest.raises(RunError) as error:
        export_saved_model(classifier(), tmp_path, formats=["litert"], verify=False)
    assert str(error.value) == "The model cannot be converted to litert: no such operation"
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("tf2onnx").level == logging.NOTSET
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_refusal(tmp_path, monkeypatch):
    def full(path, answering):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.FORMATS, "litert", formats.Format(("litert",), (), full))
    with pytest.raises(RunError, match=r"Cannot write the export to .*No space left on device"):
        export_saved_model(classifier(), tmp_path / "out", formats=["litert"], verify=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def litert_unverified(monkeypatch):
    """TensorFlow has the converter; only what runs its files is a package of its own."""
    format = dataclasses.replace(formats.FORMATS["litert"], modules=())
    monkeypatch.setitem(formats.FORMATS, "litert", format)


UNFOLDED = {
    "on": {"compensation": "layer_scaling"},
    "sn": {},
    "bin": {},
    "evalnorm": {},
    "gn": {},
}


def unfolded(name, shape):
    """Inference by each example's own statistics, behind what nothing folds into."""
    x = keras.Input(shape)
    y, _ = norms.get(name, **UNFOLDED[name])(L.Activation("tanh"), x, None)
    return keras.Model(x, L.Dense(3)(L.Flatten()(y)))


@pytest.mark.parametrize("shape", [(5, 6, 4), (4,), (3, 4, 5, 4)])
@pytest.mark.parametrize("norm", UNFOLDED)
def test_statistics_of_examples_are_operations_that_litert_has(
    norm, shape, litert_unverified, randomized, tmp_path
):
    model = randomized(unfolded(norm, shape))
    path = export_saved_model(model, tmp_path, formats=["litert"], verify=False).path
    assert (path / "model.tflite").stat().st_size > 500


@pytest.mark.parametrize("shape", [(5, 6, 4), (4,)])
@pytest.mark.parametrize("norm", UNFOLDED)
@pytest.mark.parametrize(("name", "file"), EXTRAS)
def test_statistics_of_examples_elsewhere(name, file, norm, shape, randomized, tmp_path):
    model = randomized(unfolded(norm, shape))
    assert export_saved_model(model, tmp_path, formats=[name]).verification.difference < 1e-5


def test_a_loop_that_litert_cannot_run(litert_unverified, tmp_path):
    x = keras.Input((7, 5))
    with pytest.raises(RunError, match="Build the layer with unroll=True"):
        model = keras.Model(x, L.LSTM(4)(x))
        export_saved_model(model, tmp_path, formats=["litert"], verify=False)
    model = keras.Model(x, L.LSTM(4, unroll=True)(x))
    export_saved_model(model, tmp_path, formats=["litert"], verify=False)
