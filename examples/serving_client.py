"""Asks a model in TensorFlow Serving what is in an image, through the REST API.

    python -m tfnorm.export --model_dir=runs/brn --directory=served --uint8_images --top_k=3
    docker run -p 8501:8501 -v $PWD/served:/models/digits -e MODEL_NAME=digits tensorflow/serving
    python examples/serving_client.py --model=digits --digit=17

It needs no TensorFlow; Pillow to read an image file, scikit-learn for --digit.
"""

import argparse
import http.client
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

SIGNATURE = "serving_default"


class Client:
    """A model behind the REST API of a server, at host:port."""

    def __init__(self, server: str, model: str) -> None:
        self._connection = http.client.HTTPConnection(server, timeout=60)
        self._path = f"/v1/models/{model}"

    def input_spec(self) -> tuple[str, list[int]]:
        """Type of the model's only input and its shape, with -1 for any size."""
        answer = self._ask("GET", "/metadata")
        signature = answer["metadata"]["signature_def"]["signature_def"][SIGNATURE]
        (spec,) = signature["inputs"].values()
        return spec["dtype"], [int(dim["size"]) for dim in spec["tensor_shape"]["dim"]]

    def predict(self, images: np.ndarray) -> list:
        """One prediction for each image, in the row format of the API."""
        body = {"signature_name": SIGNATURE, "instances": images.tolist()}
        return self._ask("POST", ":predict", json.dumps(body))["predictions"]

    def _ask(self, method: str, action: str, body: str | None = None) -> Any:
        self._connection.request(method, self._path + action, body)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise ConnectionError(f"the server says: {answer['error']}")
        return answer


def open_image(path: str, shape: Sequence[int]) -> np.ndarray:
    """An image file as uint8 in the given [height, width, channels], where -1 is the file's own."""
    from PIL import Image

    height, width, channels = shape
    image = Image.open(path).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if height > 0 and width > 0:
        image = image.resize((width, height))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def digit(number: int) -> np.ndarray:
    """One of scikit-learn's handwritten digits, 8×8, in 256 grey levels."""
    from sklearn.datasets import load_digits

    return np.round(load_digits().images[number, ..., None] * (255 / 16)).astype(np.uint8)


def noise(shape: Sequence[int]) -> np.ndarray:
    """A random image, 64 pixels wide or high where any size will do."""
    shape = [64 if size < 0 else size for size in shape]
    return np.random.default_rng().integers(256, size=shape, dtype=np.uint8)


def best(prediction: dict | list, count: int) -> list[tuple[Any, float]]:
    """The best classes with their scores, from an export with --top_k or without."""
    if isinstance(prediction, dict):
        return list(zip(prediction["classes"], prediction["scores"], strict=True))[:count]
    return sorted(enumerate(prediction), key=lambda pair: -pair[1])[:count]


def main(argv: Sequence[str] | None = None) -> None:
    """Sends one image and prints the best classes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="localhost:8501", help="host:port of the REST API")
    parser.add_argument("--model", required=True, help="MODEL_NAME of the server")
    parser.add_argument("--count", type=int, default=5, help="how many classes to print")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--image", help="an image file; by default random pixels are sent")
    choice.add_argument("--digit", type=int, help="number of one of scikit-learn's digits, from 0")
    arguments = parser.parse_args(argv)
    client = Client(arguments.server, arguments.model)
    try:
        dtype, (_, *shape) = client.input_spec()
        if dtype != "DT_UINT8":
            sys.exit(f"the model takes {dtype}, this client sends uint8: export --uint8_images")
        if arguments.image is not None:
            image = open_image(arguments.image, shape)
        else:
            image = noise(shape) if arguments.digit is None else digit(arguments.digit)
        (prediction,) = client.predict(image[None])
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{arguments.model} at {arguments.server}: {error}")
    for name, score in best(prediction, arguments.count):
        print(f"{name}\t{score:.4f}")


if __name__ == "__main__":
    main()
