"""TensorFlow's C API, through which no Python of TensorFlow's is in the process.

As TensorFlow Serving does, it loads the graph that is tagged "serve", finds the tensors of
serving_default by name and, if there are warm-up requests, answers these first.
"""

import ctypes
import glob
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence

import ml_dtypes
import numpy as np
import wire

BLOCKED = ("tfnorm", "keras", "tf_keras", "tensorflow")

_SIGNATURE = "serving_default"
_STRING = 7
# tensorflow/core/framework/types.proto
_DTYPES = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64,
    10: np.bool_, 14: ml_dtypes.bfloat16, 17: np.uint16, 19: np.float16, 22: np.uint32,
    23: np.uint64,
}  # fmt: skip
_STRING_SIZE = 24  # of a TF_TString


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class _Output(ctypes.Structure):
    """A tensor of a graph: an output of an operation."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


_pointer, _int, _size, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
# tensorflow/c/c_api.h, tf_tensor.h, tf_tstring.h: what a function returns, and takes.
_FUNCTIONS = {
    "TF_AllocateTensor": (_pointer, [_int, _pointer, _int, _size]),
    "TF_DeleteTensor": (None, [_pointer]),
    "TF_Dim": (ctypes.c_int64, [_pointer, _int]),
    "TF_GetCode": (_int, [_pointer]),
    "TF_GraphOperationByName": (_pointer, [_pointer, _text]),
    "TF_LoadSessionFromSavedModel": (
        _pointer,
        [_pointer, _pointer, _text, _pointer, _int, _pointer, _pointer, _pointer],
    ),
    "TF_Message": (_text, [_pointer]),
    "TF_NewBuffer": (ctypes.POINTER(_Buffer), []),
    "TF_NewGraph": (_pointer, []),
    "TF_NewSessionOptions": (_pointer, []),
    "TF_NewStatus": (_pointer, []),
    "TF_NumDims": (_int, [_pointer]),
    "TF_SessionRun": (
        None,
        [_pointer] * 4 + [_int] + [_pointer] * 2 + [_int, _pointer, _int] + [_pointer] * 2,
    ),
    "TF_StringCopy": (None, [_pointer, _text, _size]),
    "TF_StringGetDataPointer": (_pointer, [_pointer]),
    "TF_StringGetSize": (_size, [_pointer]),
    "TF_StringInit": (None, [_pointer]),
    "TF_TensorByteSize": (_size, [_pointer]),
    "TF_TensorData": (_pointer, [_pointer]),
    "TF_TensorType": (_int, [_pointer]),
}

Arrays = dict[str, np.ndarray]


def load(export: str) -> Callable[[Arrays], Arrays]:
    """Loads the signature serving_default of a SavedModel and replays its warm-up requests."""
    model = _Model(export)
    path = os.path.join(export, "assets.extra", "tf_serving_warmup_requests")
    if os.path.exists(path):
        for request in _requests(path):
            model.run(request)
    return model.run


class _Model:
    """A session, and the tensors of its signature."""

    def __init__(self, export: str) -> None:
        self._c = _library()
        self._status = self._c.TF_NewStatus()
        graph, meta_graph = self._c.TF_NewGraph(), self._c.TF_NewBuffer()
        self._session = self._c.TF_LoadSessionFromSavedModel(
            self._c.TF_NewSessionOptions(),
            None,
            os.fsencode(export),
            (ctypes.c_char_p * 1)(b"serve"),
            1,
            graph,
            meta_graph,
            self._status,
        )
        self._check()
        # MetaGraphDef.signature_def = 5; SignatureDef.inputs = 1, outputs = 2
        definition = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
        signature = wire.mapping(definition, 5)[_SIGNATURE]
        self._inputs = {
            name: (self._tensor(graph, info), wire.values(info, 2)[0])
            for name, info in wire.mapping(signature, 1).items()
        }
        self._outputs = {
            name: self._tensor(graph, info) for name, info in wire.mapping(signature, 2).items()
        }

    def run(self, inputs: Arrays) -> Arrays:
        """One call of the signature."""
        if set(inputs) != set(self._inputs):
            raise ValueError(f"inputs {sorted(inputs)}, expected {sorted(self._inputs)}")
        places = [self._inputs[name][0] for name in inputs]
        fed = [self._encode(x, self._inputs[name][1]) for name, x in inputs.items()]
        fetched = (ctypes.c_void_p * len(self._outputs))()
        self._c.TF_SessionRun(
            self._session,
            None,
            (_Output * len(places))(*places),
            (ctypes.c_void_p * len(fed))(*fed),
            len(fed),
            (_Output * len(self._outputs))(*self._outputs.values()),
            fetched,
            len(fetched),
            None,
            0,
            None,
            self._status,
        )
        self._check()
        results = {name: self._decode(y) for name, y in zip(self._outputs, fetched, strict=True)}
        for tensor in (*fed, *fetched):
            self._c.TF_DeleteTensor(tensor)
        return results

    def _check(self) -> None:
        if self._c.TF_GetCode(self._status):
            raise RuntimeError(self._c.TF_Message(self._status).decode())

    def _tensor(self, graph: int, info: bytes) -> _Output:
        # TensorInfo.name = 1, as "operation:index"
        operation, _, index = wire.values(info, 1)[0].decode().rpartition(":")
        pointer = self._c.TF_GraphOperationByName(graph, operation.encode())
        if not pointer:
            raise ValueError(f"the graph has no operation {operation!r}")
        return _Output(pointer, int(index))

    def _encode(self, x: np.ndarray, dtype: int) -> int:
        if dtype == _STRING:
            return self._encode_strings(x)
        x = np.ascontiguousarray(x.astype(_DTYPES[dtype]))
        tensor = self._allocate(dtype, x.shape, x.nbytes)
        ctypes.memmove(self._c.TF_TensorData(tensor), x.ctypes.data, x.nbytes)
        return tensor

    def _encode_strings(self, x: np.ndarray) -> int:
        tensor = self._allocate(_STRING, x.shape, x.size * _STRING_SIZE)
        place = self._c.TF_TensorData(tensor)
        for text in x.ravel():
            text = text.encode() if isinstance(text, str) else text
            self._c.TF_StringInit(place)
            self._c.TF_StringCopy(place, text, len(text))
            place += _STRING_SIZE
        return tensor

    def _allocate(self, dtype: int, shape: Sequence[int], size: int) -> int:
        return self._c.TF_AllocateTensor(
            dtype, (ctypes.c_int64 * len(shape))(*shape), len(shape), size
        )

    def _decode(self, tensor: int) -> np.ndarray:
        shape = [self._c.TF_Dim(tensor, i) for i in range(self._c.TF_NumDims(tensor))]
        dtype, data = self._c.TF_TensorType(tensor), self._c.TF_TensorData(tensor)
        size = self._c.TF_TensorByteSize(tensor)
        if dtype != _STRING:
            return np.frombuffer(ctypes.string_at(data, size), _DTYPES[dtype]).reshape(shape)
        texts = [
            ctypes.string_at(self._c.TF_StringGetDataPointer(p), self._c.TF_StringGetSize(p))
            for p in range(data, data + size, _STRING_SIZE)
        ]
        return np.array(texts, object).reshape(shape)


def _library() -> ctypes.CDLL:
    folders = [os.path.join(glob.escape(path), "tensorflow") for path in sys.path]
    found = [x for folder in folders for x in glob.glob(f"{folder}/libtensorflow_cc*")]
    if not found:
        raise OSError("the installation of TensorFlow has no libtensorflow_cc")
    library = ctypes.CDLL(found[0])
    for name, (returned, taken) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    return library


def _requests(path: str) -> Iterator[Arrays]:
    """The inputs of each request in a TFRecord file of PredictionLog messages."""
    with open(path, "rb") as file:
        while header := file.read(12):  # length of the record, and a checksum of it
            record = file.read(struct.unpack("<Q", header[:8])[0])
            file.read(4)
            # PredictionLog.predict_log = 6; PredictLog.request = 1; PredictRequest.inputs = 2
            (log,) = wire.values(record, 6)
            (request,) = wire.values(log, 1)
            yield {name: _array(proto) for name, proto in wire.mapping(request, 2).items()}


def _array(proto: bytes) -> np.ndarray:
    """A TensorProto: dtype = 1, tensor_shape = 2, tensor_content = 4, string_val = 8."""
    (dtype,), (shape,) = wire.values(proto, 1), wire.values(proto, 2)
    # TensorShapeProto.dim = 2; Dim.size = 1, left out where it is zero
    sizes = [sum(wire.values(dim, 1)) for dim in wire.values(shape, 2)]
    if dtype == _STRING:
        return np.array(wire.values(proto, 8), object).reshape(sizes)
    return np.frombuffer(wire.values(proto, 4)[0], _DTYPES[dtype]).reshape(sizes)
