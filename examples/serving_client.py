"""Asks a model in TensorFlow Serving what is in an image, through the REST API.

    python -m tfnorm.train --norm=brn --model_dir=runs/brn
    python -m tfnorm.export --model_dir=runs/brn --directory=served --uint8_images --top_k=3
    docker run -p 8501:8501 -v $PWD/served:/models/digits -e MODEL_NAME=digits tensorflow/serving
    python examples/serving_client.py --model=digits --digit=17

Of a detector it prints the boxes, of a segmenter the share of each class; --draw=found.png draws
them over the image, and the mask of each object where the model returns masks:

    python examples/serving_client.py --model=cells --image=cells.jpg --draw=found.png --count=5

It needs no TensorFlow; Pillow to read or draw an image file, scikit-learn for --digit.
"""

import argparse
import colorsys
import http.client
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SIGNATURE = "serving_default"


class Client:
    """A model behind the REST API of a server, at host:port."""

    def __init__(self, server: str, model: str) -> None:
        self._connection = http.client.HTTPConnection(server, timeout=60)
        self._path = f"/v1/models/{model}"

    def input_spec(self) -> tuple[str, list[int]]:
        """Type of the model's only input and its shape, with -1 for any size."""
        answer = self._ask("GET", "/metadata")
        try:
            signature = answer["metadata"]["signature_def"]["signature_def"][SIGNATURE]
            (spec,) = signature["inputs"].values()
            return spec["dtype"], [int(dim["size"]) for dim in spec["tensor_shape"]["dim"]]
        except (KeyError, TypeError, ValueError):
            raise ConnectionError(
                f"no signature {SIGNATURE} with one input is in what the server says of the model"
            ) from None

    def predict(self, images: np.ndarray) -> list:
        """One prediction for each image, in the row format of the API."""
        body = {"signature_name": SIGNATURE, "instances": images.tolist()}
        return self._ask("POST", ":predict", json.dumps(body)).get("predictions", [])

    def _ask(self, method: str, action: str, body: str | None = None) -> Any:
        self._connection.request(method, self._path + action, body)
        response = self._connection.getresponse()
        text = response.read()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": f"{response.status} {response.reason}, and nothing in JSON"}
        if response.status != 200 or "error" in answer:
            raise ConnectionError(f"the server says: {answer.get('error', response.reason)}")
        return answer


def open_image(path: str, shape: Sequence[int]) -> np.ndarray:
    """An image file as uint8 in the given [height, width, channels], where -1 is the file's own."""
    from PIL import Image

    height, width, channels = shape
    kinds = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in kinds:
        sys.exit(f"--image: the model takes {channels} channels, which no image file has")
    try:
        image = Image.open(path).convert(kinds[channels])
    except OSError as error:
        sys.exit(f"--image: {error}")
    if height > 0 and width > 0:
        image = image.resize((width, height))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def digit(number: int) -> np.ndarray:
    """One of scikit-learn's handwritten digits, 8×8, in 256 grey levels."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    if not 0 <= number < len(images):
        sys.exit(f"--digit must be from 0 to {len(images) - 1}, received {number}")
    return np.round(images[number, ..., None] * (255 / 16)).astype(np.uint8)


def noise(shape: Sequence[int]) -> np.ndarray:
    """A random image, 64 pixels wide or high where any size will do."""
    shape = [64 if size < 0 else size for size in shape]
    return np.random.default_rng().integers(256, size=shape, dtype=np.uint8)


def best(prediction: dict | list, count: int, names: Sequence[str]) -> list[tuple[str, float]]:
    """The best classes with their scores, from an export with --top_k or without."""
    if isinstance(prediction, dict):
        found = list(zip(prediction["classes"], prediction["scores"], strict=True))
    else:
        found = sorted(enumerate(prediction), key=lambda pair: -pair[1])
    return [(name_of(name, names), score) for name, score in found[:count]]


def is_classes(prediction: dict | list) -> bool:
    """Whether a prediction is a classifier's: one score for each class, or the best of them."""
    if isinstance(prediction, dict):
        return {"classes", "scores"} <= prediction.keys() and np.ndim(prediction["scores"]) == 1
    return isinstance(prediction, list) and np.ndim(prediction) == 1


def is_detections(prediction: dict | list) -> bool:
    """Whether a prediction is a detector's: boxes with classes, scores and their count."""
    return isinstance(prediction, dict) and "boxes" in prediction


def is_class_map(prediction: dict | list) -> bool:
    """Whether a prediction is a segmenter's: rows of the numbers of classes."""
    return isinstance(prediction, list) and np.ndim(prediction) == 2


def lines(prediction: dict | list, count: int, names: Sequence[str]) -> list[str]:
    """What to print of a prediction: the best, one a line."""
    if is_detections(prediction):
        found = detections(prediction, names)[:count]
        places = ["\t".join(f"{x:.1f}" for x in box) for box, _, _, _ in found]
        return [
            f"{name}\t{score:.4f}\t{place}"
            for (_, _, name, score), place in zip(found, places, strict=True)
        ]
    if is_class_map(prediction):
        numbers, sizes = np.unique(prediction, return_counts=True)
        shares = sorted(zip(sizes / sizes.sum(), numbers), reverse=True)[:count]
        return [f"{name_of(number, names)}\t{share:.4f}" for share, number in shares]
    if not is_classes(prediction):
        return [json.dumps(prediction)]  # of a model that is none of these
    return [f"{name}\t{score:.4f}" for name, score in best(prediction, count, names)]


def detections(prediction: dict, names: Sequence[str]) -> list[tuple[list, int, str, float]]:
    """Box, number and name of the class, and score of all that was found."""
    rows = zip(prediction["boxes"], prediction["classes"], prediction["scores"], strict=True)
    return [
        (box, number, name_of(number, names), score)
        for box, number, score in list(rows)[: prediction["count"]]
    ]


def name_of(number: int | str, names: Sequence[str]) -> str:
    """The name of a class, or its number where that is not known; an export may know it itself."""
    if isinstance(number, str) or number >= len(names):
        return str(number)
    return names[number]


def color(number: int) -> tuple[int, int, int]:
    """One of each class, far from those of its neighbours."""
    hue = number * 0.618 % 1  # the golden ratio leaves the same hue to no two of many classes
    return tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.9, 1.0))


def drawn(
    image: np.ndarray, prediction: dict | list, names: Sequence[str], count: int | None = None
) -> "Image.Image":
    """The image in colours, and over it the class map, or objects with classes and scores.

    Objects that have masks are coloured one by one, others class by class. Of more than `count`
    objects the best are drawn.
    """
    from PIL import Image, ImageDraw

    pixels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if is_class_map(prediction):
        numbers = np.array(prediction)
        colors = np.array([color(number) for number in range(numbers.max() + 1)])
        return Image.fromarray(np.uint8((pixels + colors[numbers].astype(float)) / 2))
    found, masks = detections(prediction, names)[:count], prediction.get("masks")
    colors = [
        color(number if masks is None else place) for place, (_, number, _, _) in enumerate(found)
    ]
    for mask, own in zip(masks or (), colors):
        inside = np.array(mask, bool)
        pixels = np.where(inside[..., None], np.uint8(pixels * 0.5 + np.array(own) * 0.5), pixels)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    # The best last, above all others.
    for (box, _, name, score), own in list(zip(found, colors, strict=True))[::-1]:
        top, left, bottom, right = box
        draw.rectangle((left, top, right, bottom), outline=own)
        text = f"{name} {score:.2f}"
        if masks is None or draw.textlength(text) < right - left:  # beside a mask, where it fits
            draw.text((left + 2, top + 1), text, fill=own)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    """Sends one image, prints what the model finds in it and draws that, if it has a place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="localhost:8501", help="host:port of the REST API")
    parser.add_argument("--model", required=True, help="MODEL_NAME of the server")
    text = "how many classes or boxes to print (default 5), and boxes to draw (default all)"
    parser.add_argument("--count", type=int, help=text)
    parser.add_argument("--draw", help="a PNG file to draw boxes, masks or a map of classes into")
    parser.add_argument("--labels", help="file with the names of the classes, one a line")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--image", help="an image file; by default random pixels are sent")
    choice.add_argument("--digit", type=int, help="number of one of scikit-learn's digits, from 0")
    arguments = parser.parse_args(argv)
    if arguments.count is not None and arguments.count < 1:
        sys.exit(f"--count must be 1 or more, received {arguments.count}")
    try:
        path = arguments.labels
        names = pathlib.Path(path).read_text("utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"--labels: {error}")
    try:
        client = Client(arguments.server, arguments.model)
        dtype, (_, *shape) = client.input_spec()
        if dtype != "DT_UINT8":
            sys.exit(f"the model takes {dtype}, this client sends uint8: export --uint8_images")
        if arguments.image is not None:
            image = open_image(arguments.image, shape)
        else:
            image = noise(shape) if arguments.digit is None else digit(arguments.digit)
        predictions = client.predict(image[None])
        if len(predictions) != 1:
            raise ConnectionError(f"{len(predictions)} predictions came for one image")
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{arguments.model} at {arguments.server}: {error}")
    count = 5 if arguments.count is None else arguments.count
    (prediction,) = predictions
    print("\n".join(lines(prediction, count, names)))
    if arguments.draw:
        if not is_detections(prediction) and not is_class_map(prediction):
            sys.exit("--draw is for detectors and segmenters; this model returns classes alone")
        try:
            drawn(image, prediction, names, arguments.count).save(arguments.draw, format="PNG")
        except OSError as error:
            sys.exit(f"--draw: {error}")


if __name__ == "__main__":
    main()
