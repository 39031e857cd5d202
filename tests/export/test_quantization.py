"""Exports in 8-bit integers, folded and not."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm.errors import RunError, UserError
from tfnorm.export import Postprocessing, Quantization, export_saved_model
from tfnorm.export.__main__ import main
from tfnorm.export.quantization import (
    TOLERANCE,
    Labelled,
    calibration_inputs,
    check_quantization,
)
from tfnorm.export.signature import Signature

L = keras.layers
LITERT = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="ai_edge_litert not installed"
)


@pytest.fixture
def classifier(randomized):
    x = keras.Input((8, 8, 3), name="image")
    y = tfnorm.layers.BatchRenormalization()(L.Conv2D(8, 3, use_bias=False)(x))
    y = L.ReLU()(y)
    y = L.GlobalAveragePooling2D()(L.Conv2D(8, 3)(y))
    return randomized(keras.Model(x, L.Dense(4, name="logits")(y)))


@pytest.fixture
def images(rng):
    return rng.normal(size=(70, 8, 8, 3)).astype("float32")


@pytest.fixture
def labelled(classifier, images):
    """What the model itself says, but for the first seven."""
    labels = np.argmax(classifier(images), -1)
    labels[:7] = (labels[:7] + 1) % 4
    return images, labels


def types_in(path):
    from tensorflow.lite.python import schema_py_generated as schema

    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs((path / "model.tflite").read_bytes()))
    names = {code: name for name, code in vars(schema.TensorType).items()}
    return [names[tensor.type] for tensor in graph.subgraphs[0].tensors]


@LITERT
def test_litert(classifier, images, labelled, tmp_path):
    result = export_saved_model(
        classifier,
        tmp_path,
        formats=["litert"],
        quantize="int8",
        examples=images,
        calibration=images[:40],
        evaluation=labelled,
        postprocessing=Postprocessing(top_k=2, label_names="abcd"),
    )
    assert types_in(result.path).count("INT8") > 8
    assert 1e-4 < result.verification.difference < result.verification.tolerance == TOLERANCE
    found = result.quantization
    assert (found.mode, found.runtime, found.examples) == ("int8", "litert", 70)
    assert found.model_accuracy == pytest.approx(0.9)
    assert 0.8 < found.accuracy < 1 and 0.8 < found.unfolded_accuracy < 1
    assert found.difference == result.verification.difference
    assert 0 < found.unfolded_difference < TOLERANCE
    card = json.loads((result.path / "assets.extra" / "model_card.json").read_text())
    assert card["quantization"]["accuracy"] == found.accuracy


@LITERT
def test_wrong_scales_are_found(classifier, images, tmp_path):
    options = {"formats": ["litert"], "quantize": "int8", "examples": images}
    with pytest.raises(RunError, match="LiteRT, differs from the model"):
        export_saved_model(classifier, tmp_path, **options, calibration=images[:9] / 1e3)
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_is_computed_is_quantized_as_it_is_used(images, randomized, tmp_path):
    """Folded or not, the export moves by rounding, and not by a kernel without its scale."""
    x = keras.Input((8, 8, 3), name="image")
    y = L.Dense(16)(L.Flatten()(x))
    y = tfnorm.layers.WeightCentralization(L.Dense(8, use_bias=False))(y)
    y = tfnorm.layers.MovingAverageBatchNormalization()(y)
    model = randomized(keras.Model(x, L.Dense(4)(y)))
    found = export_saved_model(model, tmp_path, quantize="int8", examples=images[:8]).quantization
    assert 1e-4 < found.difference < 0.05 and 1e-4 < found.unfolded_difference < 0.05


def test_keras(classifier, images, labelled, tmp_path):
    result = export_saved_model(
        classifier, tmp_path, quantize="int8", examples=images, evaluation=labelled
    )
    reader = tf.train.load_checkpoint(str(result.path / "variables/variables"))
    assert tf.int8 in reader.get_variable_to_dtype_map().values()
    assert result.verification.difference < result.verification.tolerance == 2e-2
    found = result.quantization
    assert found.runtime == "tensorflow_python"
    assert 1e-4 < found.difference < 0.05 and 1e-4 < found.unfolded_difference < 0.05
    assert found.model_accuracy == pytest.approx(0.9)
    assert 0.8 < found.accuracy < 1 and 0.8 < found.unfolded_accuracy < 1
    assert not any(getattr(x, "quantization_mode", None) for x in classifier.layers)


@LITERT
def test_of_a_training_run(run, tmp_path, capsys):
    flags = ["--format=litert", "--quantize=int8", "--uint8_images"]
    assert main(["export", f"--model_dir={run}", f"--directory={tmp_path}", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("int8, run by LiteRT on 360"))
    assert lines[start + 1].startswith("  folded:     outputs move by ")
    assert lines[start + 2].startswith("  not folded: outputs move by ")
    assert all(", a drop of " in line for line in lines[start + 1 : start + 3])


def test_as_text():
    found = Quantization("int8", "litert", 0.021, 0.03, 360, 0.975, 0.97, 0.95)
    assert str(found) == (
        "int8, run by LiteRT on 360 examples, of which the model has 0.9750\n"
        "  folded:     outputs move by 2.1e-02, accuracy 0.9700, a drop of 0.0050\n"
        "  not folded: outputs move by 3.0e-02, accuracy 0.9500, a drop of 0.0250"
    )
    found = Quantization("int8", "litert", 0.021, None, unfolded_failure="it is refused")
    assert str(found) == (
        "int8, run by LiteRT\n  folded:     outputs move by 2.1e-02\n  not folded: it is refused"
    )


def test_mistakes(classifier, images, tmp_path, capsys):
    check_quantization(None, ["onnx"], "float16", None)
    for arguments, message in (
        (("int4", ["litert"], None, 1), "Nothing can be quantized to 'int4'. Choose int8."),
        (
            ("int8", ["litert"], "float16", 1),
            "The weights cannot be both int8 and float16. Give quantize or weights_dtype.",
        ),
        (
            ("int8", ["saved_model", "litert"], None, 1),
            "int8 is for one format, litert or saved_model, received saved_model, litert. "
            "Export once for each.",
        ),
        (
            ("int8", ["litert"], None, None),
            "int8 of litert needs a data set for calibration: inputs as the model gets them, some "
            "hundred. Give calibration= (--calibration=inputs.npy, or the --model_dir of a run, "
            "whose training images it then takes).",
        ),
    ):
        with pytest.raises(UserError) as error:
            check_quantization(*arguments)
        assert str(error.value) == message
    x = keras.Input((8, 8, 3))
    convolutions = keras.Model(x, L.Conv2D(2, 3)(x), name="net")
    with pytest.raises(UserError, match=r"Keras has no int8 for any layer of the model 'net'"):
        export_saved_model(convolutions, tmp_path, quantize="int8", verify=False)
    with pytest.raises(UserError, match="the number of a class for each example; the model has 1 "):
        export_saved_model(
            classifier, tmp_path, quantize="int8", evaluation=(images, np.zeros(3, int))
        )
    assert list(tmp_path.iterdir()) == []
    classifier.save(tmp_path / "net.keras")
    arguments = ["export", f"--model={tmp_path / 'net.keras'}", f"--directory={tmp_path / 'out'}"]
    for flags, message in (
        (["--calibration=x.npy"], "--calibration is for --quantize, which is not given."),
        (
            ["--quantize=int8", "--format=litert", "--calibration=none.npy"],
            "Cannot read inputs from 'none.npy': [Errno 2] No such file or directory: 'none.npy'. "
            "Name a file that numpy.save wrote.",
        ),
    ):
        assert main([*arguments, *flags]) == 2
        assert capsys.readouterr().err == f"tfnorm: error: {message}\n"


def test_calibration_that_is_not_finite(classifier, images, tmp_path):
    signature = Signature(classifier, None, None)
    bad = images[:3].copy()
    bad[1, 2, 3, 0] = np.inf
    for calibration in (bad, np.full(bad.shape, "a")):
        with pytest.raises(UserError, match="The calibration must be finite numbers"):
            calibration_inputs(signature, calibration)


def test_an_evaluation_by_other_than_numbers_of_classes(classifier, images, tmp_path):
    one_hot = np.eye(4)[:3]
    with pytest.raises(UserError, match=r"an array of shape \(3, 4\) of float64 for 3 examples"):
        Labelled(classifier, Signature(classifier, None, None), images[:3], one_hot)
