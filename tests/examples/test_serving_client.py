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

from tfnorm.boxes import AnchorGrid
from tfnorm.export import Postprocessing, Preprocessing, export_saved_model
from tfnorm.serving import Canvas, ClassMap, DetectionPostprocessing

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
    if not isinstance(row, list):
        return row
    return [x.decode() if isinstance(x, bytes) else x for x in row]


@pytest.fixture
def served(tmp_path, randomized_model):
    """Starts servers of exports; gives their address and the images they received."""
    servers = []

    def start(model=None, **options):
        model = model or randomized_model
        path = export_saved_model(model, tmp_path / "export", verify=False, **options).path
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


def a_picture(rng, tmp_path):
    image = rng.integers(256, size=(20, 30, 1), dtype=np.uint8)
    (tmp_path / "image.png").write_bytes(tf.io.encode_png(image).numpy())
    return image, f"--image={tmp_path / 'image.png'}"


def read(path):
    return tf.io.decode_png(path.read_bytes()).numpy().astype(int)


def test_a_map_of_classes_is_drawn(client, served, randomized, rng, tmp_path, capsys):
    x = keras.Input((None, None, 1), name="image")
    model = randomized(keras.Model(x, L.Conv2D(3, 3, padding="same", name="logits")(x)))
    image, sent = a_picture(rng, tmp_path)
    server, _ = served(model, preprocessing=PIXELS, postprocessing=ClassMap(LABELS[:3]))
    (tmp_path / "labels").write_text("\n".join(LABELS[:3]), encoding="utf-8")
    arguments = [f"--labels={tmp_path / 'labels'}", f"--draw={tmp_path / 'out.png'}"]
    client["main"]([server, "--model=digits", sent, *arguments])
    names, shares = printed(capsys)
    classes = np.argmax(model((image[None] / 255 - 0.3) / 0.4), -1)[0]
    assert len(set(classes.ravel())) > 1
    expected = {LABELS[i]: np.mean(classes == i) for i in set(classes.ravel())}
    assert dict(zip(names, shares, strict=True)) == pytest.approx(expected, abs=1e-4)
    assert shares == sorted(shares, reverse=True)
    colors = np.array([client["color"](i) for i in range(3)])
    assert len({tuple(x) for x in colors}) == 3
    np.testing.assert_allclose(read(tmp_path / "out.png"), (image + colors[classes]) / 2, atol=1)


def test_boxes_are_drawn(client, served, rng, tmp_path, capsys):
    """A detector that finds one box on its canvas of 16×16, wherever it looks."""
    anchors = AnchorGrid(2, 2)
    number = 9 * 5  # the first anchor of the second cell of the second row: 11×22 around (6, 6)
    flat = np.full((144, 2), -20.0)
    flat[number, 1] = 3.0
    x = keras.Input((16, 16, 1), name="image")
    logits = L.Dense(288, kernel_initializer="zeros", name="logits")
    deltas = L.Dense(576, kernel_initializer="zeros", name="deltas")
    outputs = {
        "class_logits": L.Reshape((144, 2))(logits(L.Flatten()(x))),
        "box_deltas": L.Reshape((144, 4))(deltas(L.Flatten()(x))),
    }
    logits.bias.assign(flat.ravel())
    shrunk = np.zeros((144, 4))
    shrunk[number, 2:] = np.log(0.4)
    deltas.bias.assign(shrunk.ravel())
    server, _ = served(
        keras.Model(x, outputs),
        preprocessing=Canvas(PIXELS, (16, 16), (0.0,)),
        postprocessing=DetectionPostprocessing(anchors, (16, 16), LABELS[:2]),
    )
    image, sent = a_picture(rng, tmp_path)
    client["main"]([server, "--model=digits", sent, f"--draw={tmp_path / 'out.png'}"])
    ((name, score, *box),) = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert (name, score) == ("1", f"{1 / (1 + np.exp(-3)):.4f}")
    # The image of 20×30 was brought to 11×16.
    sides = np.array([16 * 0.5**0.5, 16 * 2**0.5]) * 0.4
    canvas = np.array([*(6 - sides / 2), *(6 + sides / 2)])
    np.testing.assert_allclose(
        np.float64(box), canvas * [20 / 11, 30 / 16, 20 / 11, 30 / 16], atol=0.06
    )
    found = read(tmp_path / "out.png")
    assert found.shape == (20, 30, 3)
    _, left, bottom, right = np.float64(box)
    is_border = np.all(found == client["color"](1), -1)
    rows, columns = np.nonzero(is_border)
    assert abs(rows.max() - bottom) <= 1 and abs(columns.min() - left) <= 1
    assert is_border[round(bottom), round(left) + 1 : round(right)].mean() > 0.8
    is_image = np.all(found == image, -1)
    assert is_image[:, : int(left)].all() and not is_image.all()


def test_masks_are_drawn_one_by_one(client, rng):
    """Each object in a colour of its own, blended with the image; a box around it."""
    image = rng.integers(100, size=(20, 30, 1), dtype=np.uint8)
    masks = np.zeros((3, 20, 30), int)
    masks[0, 3:9, 4:12], masks[1, 10:18, 15:28] = 1, 1
    prediction = {
        "boxes": [[3, 4, 8, 11], [10, 15, 17, 27], [0, 0, 0, 0]], "classes": [1, 1, 0],
        "scores": [0.9, 0.8, 0.0], "count": 2, "masks": masks.tolist(),
    }  # fmt: skip
    found = np.array(client["drawn"](image, prediction, LABELS)).astype(int)
    colors = np.array([client["color"](0), client["color"](1)])
    for place, inside in ((0, np.s_[4:8, 5:11]), (1, np.s_[11:17, 16:27])):
        np.testing.assert_allclose(found[inside], (image[inside] + colors[place]) / 2, atol=1)
    assert (found[3, 4:12] == colors[0]).all() and (found[10:18, 27] == colors[1]).all()
    outside = np.ones((20, 30), bool)
    outside[3:9, 4:12] = outside[10:18, 15:28] = False
    np.testing.assert_array_equal(found[outside], np.repeat(image, 3, -1)[outside])
    best = np.array(client["drawn"](image, prediction, LABELS, 1))
    outside[10:18, 15:28] = True
    np.testing.assert_array_equal(best[outside], np.repeat(image, 3, -1)[outside])
    np.testing.assert_array_equal(best[4:8, 5:11], found[4:8, 5:11])


def test_nothing_to_draw(client, served, tmp_path):
    server, _ = served(preprocessing=PIXELS, postprocessing=Postprocessing())
    with pytest.raises(SystemExit, match=r"^--draw is for detectors and segmenters; this model"):
        client["main"]([server, "--model=digits", f"--draw={tmp_path / 'out.png'}"])
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(SystemExit, match=r"^--labels: .*No such file"):
        client["main"]([server, "--model=digits", f"--labels={tmp_path / 'none'}"])


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


def test_names_of_classes_that_the_export_does_not_know(client, served, tmp_path, capsys):
    (tmp_path / "labels").write_text("\n".join(LABELS), encoding="utf-8")
    names_of = {}
    for postprocessing in (Postprocessing(), Postprocessing(top_k=5)):
        server, _ = served(preprocessing=PIXELS, postprocessing=postprocessing)
        client["main"]([server, "--model=digits", "--digit=3", f"--labels={tmp_path / 'labels'}"])
        names_of[postprocessing.top_k], _ = printed(capsys)
    assert names_of[None] == names_of[5] and sorted(names_of[5]) == sorted(LABELS)


def test_best_classes_of_each_position_are_printed_as_they_are(client, served, randomized, capsys):
    x = keras.Input((8, 8, 1), name="image")
    model = randomized(keras.Model(x, L.Conv2D(3, 1)(x)))
    server, _ = served(model, preprocessing=PIXELS, postprocessing=Postprocessing(top_k=2))
    client["main"]([server, "--model=digits", "--digit=3"])
    assert set(json.loads(capsys.readouterr().out)) == {"classes", "scores"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--digit=99999"], "--digit must be from 0 to 1796, received 99999"),
        (["--digit=-5"], "--digit must be from 0 to 1796, received -5"),
        (["--count=0"], "--count must be 1 or more, received 0"),
        (["--image=/nope.png"], "--image: [Errno 2] No such file or directory: '/nope.png'"),
        (["--labels=/dev/null/x"], "--labels: [Errno 20] Not a directory: '/dev/null/x'"),
        (["--server=localhost:x"], "digits at localhost:x: nonnumeric port: 'x'"),
    ],
)
def test_mistakes(client, served, arguments, message):
    server, _ = served(preprocessing=PIXELS, postprocessing=Postprocessing())
    with pytest.raises(SystemExit) as error:
        client["main"]([server, "--model=digits", *arguments])
    assert str(error.value) == message


@pytest.mark.parametrize(
    "status, text, message",
    [
        (502, "<html>Bad gateway</html>", "the server says: 502 Bad Gateway, and nothing in JSON"),
        (404, "{}", "the server says: Not Found"),
        (200, '{"metadata": {}}', "no signature serving_default with one input"),
    ],
)
def test_what_no_server_of_models_answers(client, monkeypatch, status, text, message):
    def answer(self):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    monkeypatch.setattr(Handler, "do_GET", answer)
    server = http.server.HTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with pytest.raises(SystemExit) as error:
        client["main"]([f"--server=localhost:{server.server_port}", "--model=digits"])
    thread.join()
    server.server_close()
    assert message in str(error.value)
