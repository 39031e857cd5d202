"""The client against a server that speaks TensorFlow Serving's REST API and runs the export."""

import http.server
import json
import pathlib
import runpy
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm.export import Postprocessing, Preprocessing, export_saved_model

PATH = pathlib.Path(__file__).parents[2] / "examples" / "serving_client.py"
L = keras.layers


class Handler(http.server.BaseHTTPRequestHandler):
    """Metadata and prediction in row format, as tensorflow/serving's api_rest.md has them."""

    def do_GET(self):
        if self.path != "/v1/models/digits/metadata":
            return self.refuse()
        (spec,) = self.server.serve.structured_input_signature[1].values()
        dim = [{"size": str(-1 if n is None else n), "name": ""} for n in spec.shape]
        dtype = f"DT_{spec.dtype.name.upper().replace('32', '')}"
        shape = {"dim": dim, "unknown_rank": False}
        inputs = {spec.name: {"dtype": dtype, "tensor_shape": shape, "name": "serving_default_x:0"}}
        signature = {"inputs": inputs, "outputs": {}, "method_name": "tensorflow/serving/predict"}
        definition = {"signature_def": {"signature_def": {"serving_default": signature}}}
        self.answer(200, {"model_spec": {"name": "digits"}, "metadata": definition})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/models/digits:predict":
            return self.refuse()
        assert set(body) == {"signature_name", "instances"}
        assert body["signature_name"] == "serving_default"
        (spec,) = self.server.serve.structured_input_signature[1].values()
        tensor = tf.constant(body["instances"])
        assert tensor.dtype == tf.int32  # whole numbers in the JSON
        self.server.received.append(tensor.numpy())
        outputs = self.server.serve(**{spec.name: tf.cast(tensor, spec.dtype)})
        rows = {name: [plain(x) for x in y.numpy().tolist()] for name, y in outputs.items()}
        if len(rows) == 1:
            (predictions,) = rows.values()
        else:
            predictions = [dict(zip(rows, row)) for row in zip(*rows.values(), strict=True)]
        return self.answer(200, {"predictions": predictions})

    def refuse(self):
        self.answer(404, {"error": "Servable not found for request: Latest(x)"})

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args):
        pass


def plain(row):
    return [x.decode() if isinstance(x, bytes) else x for x in row]


@pytest.fixture
def served(tmp_path, randomized_model):
    """Starts servers of exports; gives their address and the images they received."""
    servers = []

    def start(**options):
        path = export_saved_model(randomized_model, tmp_path, verify=False, **options).path
        server = http.server.HTTPServer(("localhost", 0), Handler)
        server.serve = tf.saved_model.load(str(path)).signatures["serving_default"]
        server.received = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"--server=localhost:{server.server_port}", server.received

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def randomized_model(rng):
    x = keras.Input((8, 8, 1), name="image")
    y = L.Dense(5, name="logits")(L.Flatten()(L.BatchNormalization()(L.Conv2D(4, 3)(x))))
    model = keras.Model(x, y)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture
def client():
    return runpy.run_path(str(PATH))


PIXELS = Preprocessing([0.3], [0.4])
ANY_SIZE = Preprocessing([0.3], [0.4], resize=True)
LABELS = ["Kätzchen", "dog", "bird", "fish", "cow"]


def expected_scores(model, image):
    return tf.nn.softmax(model((image[None] / 255 - 0.3) / 0.4))[0].numpy()


def printed(capsys):
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    return [name for name, _ in lines], [float(score) for _, score in lines]


def test_best_classes_of_a_digit(client, served, randomized_model, capsys):
    server, received = served(
        preprocessing=PIXELS, postprocessing=Postprocessing(top_k=3, label_names=LABELS)
    )
    client["main"]([server, "--model=digits", "--digit=17"])
    ((image,),) = received
    np.testing.assert_array_equal(image, client["digit"](17))
    assert image.max() == 255
    names, scores = printed(capsys)
    expected = expected_scores(randomized_model, image)
    order = np.argsort(-expected)[:3]
    assert names == [LABELS[i] for i in order]
    np.testing.assert_allclose(scores, expected[order], atol=1e-4)


def test_an_image_file_in_its_own_size(client, served, rng, tmp_path, capsys):
    image = rng.integers(256, size=(11, 6, 1), dtype=np.uint8)
    (tmp_path / "image.png").write_bytes(tf.io.encode_png(image).numpy())
    server, received = served(
        preprocessing=ANY_SIZE, postprocessing=Postprocessing(top_k=2, label_names=LABELS)
    )
    client["main"]([server, "--model=digits", f"--image={tmp_path / 'image.png'}", "--count=1"])
    np.testing.assert_array_equal(received[0][0], image)
    names, _ = printed(capsys)
    assert len(names) == 1 and names[0] in LABELS


def test_an_image_file_in_the_size_of_the_model(client, served, rng, tmp_path, capsys):
    colours = rng.integers(256, size=(11, 6, 3), dtype=np.uint8)
    (tmp_path / "image.png").write_bytes(tf.io.encode_png(colours).numpy())
    server, received = served(preprocessing=PIXELS, postprocessing=Postprocessing())
    client["main"]([server, "--model=digits", f"--image={tmp_path / 'image.png'}"])
    assert received[0].shape == (1, 8, 8, 1)
    _, scores = printed(capsys)
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-3)


def test_random_pixels(client, served, capsys):
    server, received = served(preprocessing=ANY_SIZE, postprocessing=Postprocessing(top_k=2))
    client["main"]([server, "--model=digits"])
    assert received[0].shape == (1, 64, 64, 1)
    assert received[0].max() > 200
    names, _ = printed(capsys)
    assert len(names) == 2 and all(0 <= int(name) < 5 for name in names)


def test_what_goes_wrong(client, served, capsys):
    server, _ = served()
    with pytest.raises(SystemExit) as error:
        client["main"]([server, "--model=digits"])
    assert str(error.value) == (
        "the model takes DT_FLOAT, this client sends uint8: export --uint8_images"
    )
    with pytest.raises(SystemExit) as error:
        client["main"]([server, "--model=cats"])
    assert str(error.value) == (
        f"cats at {server.removeprefix('--server=')}: the server says: "
        "Servable not found for request: Latest(x)"
    )
    with pytest.raises(SystemExit, match=r"^digits at localhost:1: .*refused"):
        client["main"](["--server=localhost:1", "--model=digits"])
