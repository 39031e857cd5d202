"""What TensorFlow Serving would see: the C API, its warm-up file, saved_model_cli."""

import importlib
import json
import pathlib
import struct
import subprocess
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.framework import tensor_pb2
from tensorflow.python.tools import saved_model_cli

from tfnorm.errors import RunError
from tfnorm.export import Postprocessing, Preprocessing, export_saved_model, saved_model
from tfnorm.export.record import record
from tfnorm.export.runtimes import wire
from tfnorm.export.signature import Signature
from tfnorm.export.verify import _SCRIPT, verify_export

L = keras.layers
WARMUP = "assets.extra/tf_serving_warmup_requests"


@pytest.fixture
def c_api(monkeypatch):
    """The runtime, in this process: the library is the one that TensorFlow's Python runs on."""
    monkeypatch.syspath_prepend(str(_SCRIPT.parent))
    return importlib.import_module("tensorflow_c")


@pytest.fixture
def exported(randomized, tmp_path):
    """An export that takes images and returns names, with warm-up requests, and its path."""
    x = keras.Input((8, 8, 3), name="my-image")
    y = L.BatchNormalization()(L.Conv2D(4, 3, use_bias=False)(x))
    y = L.Dense(5, name="logits")(L.GlobalAveragePooling2D()(L.ReLU()(y)))
    return export_saved_model(
        randomized(keras.Model(x, y, name="net")),
        tmp_path,
        verify=False,
        preprocessing=Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize=True),
        postprocessing=Postprocessing(top_k=2, label_names=["Kätzchen", "b", "c", "d", "e"]),
        warmup_batch_sizes=[1, 5],
    ).path


def test_all_types_through_the_c_api(c_api, rng, tmp_path):
    values = {
        dtype: rng.uniform(0, 9, size=(2, 3)).astype(tf.as_dtype(dtype).as_numpy_dtype)
        for dtype in ("float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64")
    }
    values["bool"] = rng.integers(2, size=(2, 3)).astype(bool)
    values["string"] = np.array([[b"", b"a", b"nul\0nul"], ["ä".encode(), b"x" * 99, b"z"]], "O")
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 3], d, d) for d in values])
    def serve(*tensors):
        outputs = {d: tf.reverse(x, [0]) for d, x in zip(values, tensors, strict=True)}
        return {**outputs, "scalar": tf.constant(7)}

    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": serve})
    answer = c_api.load(str(tmp_path))({k: v for k, v in values.items()})
    assert answer.pop("scalar") == 7
    assert set(answer) == set(values)
    for dtype, value in values.items():
        np.testing.assert_array_equal(answer[dtype], value[::-1])
        assert answer[dtype].dtype == value.dtype


def test_c_api_answers_as_tensorflow_does(c_api, exported, rng):
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    run = c_api.load(str(exported))
    for batch in (1, 3, 32):
        x = rng.integers(256, size=(batch, 9, 7, 3), dtype=np.uint8)
        answer, expected = run({"my-image": x}), serve(**{"my-image": tf.constant(x)})
        np.testing.assert_array_equal(answer["classes"], expected["classes"])
        np.testing.assert_allclose(answer["scores"], expected["scores"], rtol=1e-5)


def test_no_request_kills_the_server(c_api, randomized, rng, tmp_path):
    """Keras' own convolution ends the process at a tensor of another rank."""
    x, index = keras.Input((8, 8, 6), name="x"), keras.Input((3,), name="index", dtype="int32")
    y = L.BatchNormalization()(L.Conv2D(4, 3)(x))
    y = L.Conv2D(6, 3, groups=2, activation="relu")(y)
    pooled = L.GlobalAveragePooling2D()(y) + L.Flatten()(L.Embedding(5, 2)(index))
    total = keras.ops.sum(y)
    model = keras.Model([x, index], {"y": y, "dense": L.Dense(3)(pooled), "total": total})
    path = export_saved_model(randomized(model), tmp_path, verify=False).path
    run = c_api.load(str(path))
    images, numbers = rng.normal(size=(2, 8, 8, 6)), rng.integers(5, size=(2, 3))
    for wrong in (images[0], images[..., :4], images[:, :, :7], images[:, None], images[0, 0, 0]):
        with pytest.raises(RuntimeError, match="is not compatible with expected shape"):
            run({"x": wrong, "index": numbers})
    with pytest.raises(RuntimeError, match="is not compatible with expected shape"):
        run({"x": images, "index": numbers[0]})
    answer = run({"x": images[:0], "index": numbers[:0]})
    assert {name: value.shape for name, value in answer.items()} == {
        "y": (0, 4, 4, 6),
        "dense": (0, 3),
        "total": (),
    }
    expected = model([images.astype("float32"), numbers])
    for name, value in run({"x": images, "index": numbers}).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4)


def test_tables_and_texts_go_with_the_export(c_api, randomized, tmp_path):
    x = keras.Input((1,), dtype="string", name="word")
    numbers = L.StringLookup(vocabulary=["Kätzchen", "dog"])(x)
    model = randomized(keras.Model(x, L.Flatten(name="y")(L.Embedding(3, 4)(numbers))))
    words = np.array([["dog"], ["Kätzchen"], ["cow"]], "O")
    options = {"examples": words, "warmup_batch_sizes": [2], "verify": False}
    path = export_saved_model(model, tmp_path, **options).path
    (batch,) = (b for b in record(model, Signature(model), words) if b.size == 3)
    answer = c_api.load(str(path))(batch.inputs)
    np.testing.assert_allclose(answer["y"], model(tf.constant(words)), rtol=1e-6)
    assert len(np.unique(answer["y"][:, 0])) == 3
    (request,) = c_api._requests(str(path / WARMUP))
    assert request["word"].tolist() == [[b"dog"], ["Kätzchen".encode()]]


def test_c_api_says_what_is_wrong(c_api, exported, tmp_path):
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        c_api.load(str(tmp_path / "none"))
    run = c_api.load(str(exported))
    with pytest.raises(ValueError, match=r"^inputs \['x'\], expected \['my-image'\]$"):
        run({"x": np.ones(3)})
    with pytest.raises(RuntimeError, match="is not compatible with expected shape"):
        run({"my-image": np.ones((1, 8, 8, 2))})
    empty = run({"my-image": np.zeros((0, 9, 7, 3))})
    assert {name: value.shape for name, value in empty.items()} == {
        "classes": (0, 2),
        "scores": (0, 2),
    }


def test_process_imports_no_tensorflow(exported, tmp_path):
    image = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    np.savez(tmp_path / "record.npz", **{"1/my-image": image})
    command = [sys.executable, "-I", str(_SCRIPT), "tensorflow_c", str(exported)]
    command += [str(tmp_path / "record.npz"), str(tmp_path / "answers.npz")]
    done = subprocess.run(command, input=json.dumps(sys.path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    assert answers["1/classes"].dtype.kind == "S"
    assert answers["1/scores"].dtype == np.float64
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    expected = serve(tf.constant(image))
    np.testing.assert_allclose(answers["1/scores"], expected["scores"], rtol=1e-5)


def test_what_the_c_api_answers_is_compared(randomized, tmp_path):
    x = keras.Input((4,), name="x")
    model = randomized(keras.Model(x, L.Dense(3, name="logits")(x)))
    path = export_saved_model(model, tmp_path, verify=False).path
    batches = record(model, Signature(model))
    verification = verify_export(path, batches, 1e-5, ["tensorflow_c"])
    assert verification.runtimes == ("tensorflow_c",)
    assert verification.batch_sizes == (1, 3, 32)
    batches[1].outputs["logits"][2, 1] *= 1.1
    with pytest.raises(RunError) as error:
        verify_export(path, batches, 1e-5, ["tensorflow_c"])
    start = "The exported model, run by TensorFlow's C API, differs from the model: output 'logits'"
    assert str(error.value).startswith(f"{start}, batch of 3: ")


def prediction_log_class():
    """tensorflow.serving.PredictionLog, as its .proto files declare it."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="prediction_log.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append(tensor_pb2.DESCRIPTOR.name)

    def message(parent, name, *declared):
        found = parent.add(name=name)
        for number, field_name, kind in declared:
            of_message = kind != "string"
            found.field.add(
                number=number,
                name=field_name,
                label=field.LABEL_REPEATED if field_name == "inputs" else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if of_message else field.TYPE_STRING,
                type_name=f".tensorflow.{kind}" if of_message else None,
            )
        return found

    top = file.message_type
    message(top, "ModelSpec", (1, "name", "string"), (3, "signature_name", "string"))
    inputs = (2, "inputs", "serving.PredictRequest.InputsEntry")
    request = message(top, "PredictRequest", (1, "model_spec", "serving.ModelSpec"), inputs)
    entry = ((1, "key", "string"), (2, "value", "TensorProto"))
    message(request.nested_type, "InputsEntry", *entry).options.map_entry = True
    message(top, "PredictLog", (1, "request", "serving.PredictRequest"))
    message(top, "PredictionLog", (6, "predict_log", "serving.PredictLog"))
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.PredictionLog")
    )


def test_warmup_file_is_what_serving_reads(exported):
    records = list(tf.data.TFRecordDataset(str(exported / WARMUP)).as_numpy_iterator())
    message = prediction_log_class()
    requests = [message.FromString(record).predict_log.request for record in records]
    assert [r.model_spec.name for r in requests] == ["net", "net"]
    assert [r.model_spec.signature_name for r in requests] == ["serving_default"] * 2
    images = [tf.make_ndarray(r.inputs["my-image"]) for r in requests]
    assert [image.shape for image in images] == [(1, 64, 64, 3), (5, 32, 32, 3)]
    assert all(image.dtype == np.uint8 and len(np.unique(image)) > 250 for image in images)


def test_warmup_holds_examples_of_all_types(c_api, rng, tmp_path):
    inputs = {d: keras.Input((2,), name=d, dtype=d) for d in ("bfloat16", "int64", "float32")}
    model = keras.Model(inputs, {d: L.Identity(dtype=d)(x) for d, x in inputs.items()})
    examples = {d: rng.uniform(0, 9, size=(4, 2)).astype(d) for d in inputs if d != "bfloat16"}
    examples["bfloat16"] = rng.uniform(size=(4, 2)).astype(ml_dtypes.bfloat16)
    path = export_saved_model(
        model, tmp_path, verify=False, examples=examples, warmup_batch_sizes=[3]
    ).path
    (request,) = c_api._requests(str(path / WARMUP))
    assert set(request) == set(inputs)
    for name, value in request.items():
        np.testing.assert_array_equal(value, examples[name][:3].astype(name))


def test_warmup_that_cannot_be_answered_fails_the_export(tmp_path, monkeypatch):
    write = saved_model.write_warmup

    def misnamed(path, name, signature, requests):
        write(path, name, signature, requests)
        text = path.read_bytes().replace(b"image", b"imago")
        path.write_bytes(text)

    monkeypatch.setattr(saved_model, "write_warmup", misnamed)
    x = keras.Input((4,), name="image")
    with pytest.raises(RunError) as error:
        export_saved_model(keras.Model(x, L.Dense(2)(x)), tmp_path, warmup_batch_sizes=[2])
    assert str(error.value) == (
        "The exported model cannot be run by TensorFlow's C API without tfnorm and Keras: "
        "ValueError: inputs ['imago'], expected ['image'] (exit code 1)."
    )
    assert list(tmp_path.iterdir()) == []


def test_wire_format_against_protobuf(rng):
    proto = tensor_pb2.TensorProto(dtype=1, version_number=300, tensor_content=b"x" * 200)
    proto.tensor_shape.dim.add(size=-1)
    proto.half_val.extend([1, 70000])
    found = dict(wire.fields(proto.SerializeToString()))
    assert (found[1], found[3], found[4]) == (1, 300, b"x" * 200)
    (shape,) = wire.values(proto.SerializeToString(), 2)
    ((_, size),) = wire.fields(wire.values(shape, 2)[0])
    assert size - 2**64 == -1
    for length in (0, 1, 127, 128, 16383, 16384, 70000):
        content = rng.bytes(length)
        parsed = tensor_pb2.TensorProto.FromString(wire.field(4, content))
        assert parsed.tensor_content == content
    fixed = b"\x0d" + struct.pack("<f", 1.5) + b"\x11" + struct.pack("<d", 2.5)
    assert [value for _, value in wire.fields(fixed)] == [fixed[1:5], fixed[6:]]


def test_saved_model_cli(exported, tmp_path, capsys):
    def cli(command, *arguments):
        which = (f"--dir={exported}", "--tag_set=serve", "--signature_def=serving_default")
        with flagsaver.flagsaver():
            flags.FLAGS(["saved_model_cli", *which, *arguments])
            command()
        return capsys.readouterr().out

    shown = cli(saved_model_cli.show)
    assert "inputs['my-image'] tensor_info:\n      dtype: DT_UINT8\n" in shown
    assert "shape: (-1, -1, -1, 3)" in shown
    assert "outputs['classes'] tensor_info:\n      dtype: DT_STRING\n" in shown
    image = np.arange(3 * 192).astype(np.uint8).reshape(3, 8, 8, 3)
    np.save(tmp_path / "image.npy", image)
    image_file = tmp_path / "image.npy"
    cli(saved_model_cli.run, f"--inputs=my-image={image_file}", f"--outdir={tmp_path}")
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    expected = serve(tf.constant(image))["scores"]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=1e-5)


def test_scripts_are_part_of_the_package():
    assert _SCRIPT.is_file()
    modules = {path.stem for path in _SCRIPT.parent.glob("*.py")}
    assert {"tensorflow_python", "tensorflow_c", "litert", "onnx_runtime"} < modules
    assert pathlib.Path(_SCRIPT).parent.name == "runtimes"
