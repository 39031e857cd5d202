import json
import socket
import types

import pytest
import tensorflow as tf

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.training import strategies, workers


def create(**fields):
    return strategies.create(training.Config(**fields))


def test_one_device():
    assert create().num_replicas_in_sync == 1
    assert workers.is_chief(create())


@pytest.mark.parametrize(("asked", "replicas"), [(0, 1), (1, 1), (3, 3)])
def test_mirrored_over_logical_cpus(asked, replicas):
    strategy = create(distribution_strategy="mirrored", num_replicas=asked)
    assert strategy.num_replicas_in_sync == replicas
    assert workers.is_chief(strategy)


def test_more_replicas_than_cpu_devices_once_tensorflow_has_started():
    tf.constant(1.0)
    with pytest.raises(UserError) as error:
        create(distribution_strategy="mirrored", num_replicas=9)
    assert str(error.value) == (
        "num_replicas=9 is more than the 8 logical CPU devices with which TensorFlow has started; "
        "call tfnorm.training.strategies.prepare_cpu_devices(9) before anything else"
    )


def test_more_replicas_than_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    with pytest.raises(UserError) as error:
        create(distribution_strategy="mirrored", num_replicas=3)
    assert str(error.value) == (
        "num_replicas=3 is more than the 2 GPUs of this machine; choose --num_replicas=2 or fewer"
    )


def test_gpus_are_used_where_they_are(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: devices)
    assert create(distribution_strategy="mirrored") == ["GPU:0", "GPU:1"]
    monkeypatch.setattr(tf.distribute, "OneDeviceStrategy", lambda device: device)
    assert create() == "GPU:0"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "{}",
        "nonsense",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
    ],
)
def test_multi_worker_without_a_cluster(monkeypatch, value):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if value:
        monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(UserError) as error:
        create(distribution_strategy="multi_worker_mirrored")
    assert str(error.value) == (
        "distribution_strategy=multi_worker_mirrored needs the environment variable TF_CONFIG in "
        f"every worker, received '{value or ''}'; such as "
        '{"cluster": {"worker": ["host0:1234", "host1:1234"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )


def test_multi_worker_on_some_of_the_gpus(monkeypatch):
    cluster = {"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b", "c"])
    with pytest.raises(UserError) as error:
        create(distribution_strategy="multi_worker_mirrored", num_replicas=2)
    assert str(error.value) == (
        "num_replicas=2, but each worker takes part with all of its 3 GPUs; leave --num_replicas "
        "out, or hide GPUs with CUDA_VISIBLE_DEVICES"
    )


@pytest.mark.parametrize(
    ("kind", "index", "chief", "expected"),
    [
        ("worker", 0, False, True),
        ("worker", 1, False, False),
        ("worker", 0, True, False),
        ("chief", 0, True, True),
        (None, None, False, True),
    ],
)
def test_who_is_chief(monkeypatch, kind, index, chief, expected):
    class Cluster:
        task_type, task_id = kind, index

        def cluster_spec(self):
            return types.SimpleNamespace(jobs=["chief", "worker"] if chief else ["worker"])

    class Workers:
        cluster_resolver = Cluster()

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Workers)
    assert workers.is_chief(Workers()) is expected


class TestTpu:
    @pytest.fixture
    def calls(self, monkeypatch):
        """A TPU of 8 cores that notes what is done to it."""
        calls = []
        resolvers = tf.distribute.cluster_resolver
        monkeypatch.setattr(resolvers, "TPUClusterResolver", lambda tpu: f"resolver of {tpu}")
        for module, name in (
            (tf.config, "experimental_connect_to_cluster"),
            (tf.tpu.experimental, "initialize_tpu_system"),
        ):
            monkeypatch.setattr(module, name, lambda r, name=name: calls.append((name, r)))
        strategy = types.SimpleNamespace(num_replicas_in_sync=8)
        monkeypatch.setattr(
            tf.distribute, "TPUStrategy", lambda r: calls.append(("TPUStrategy", r)) or strategy
        )
        return calls

    @pytest.mark.parametrize("replicas", [0, 8])
    def test_is_connected_and_initialized_first(self, calls, replicas):
        strategy = create(distribution_strategy="tpu", tpu="local", num_replicas=replicas)
        assert strategy.num_replicas_in_sync == 8
        assert calls == [
            ("experimental_connect_to_cluster", "resolver of local"),
            ("initialize_tpu_system", "resolver of local"),
            ("TPUStrategy", "resolver of local"),
        ]

    def test_of_another_size(self, calls):
        with pytest.raises(UserError) as error:
            create(distribution_strategy="tpu", tpu="local", num_replicas=4)
        assert str(error.value) == (
            "num_replicas=4, but TPU 'local' has 8 replicas; choose as many"
        )

    def test_that_is_not_named(self):
        with pytest.raises(UserError) as error:
            create(distribution_strategy="tpu")
        assert str(error.value) == (
            "found no TPU: looked with TPUClusterResolver for tpu='' (local is a TPU VM's own, "
            "otherwise a Cloud TPU name or grpc://host:port); "
            "ValueError: Please provide a TPU Name to connect to."
        )

    def test_that_does_not_answer(self, calls):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"grpc://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError) as error:
            create(distribution_strategy="tpu", tpu=address)
        assert str(error.value) == (
            f"found no TPU: looked with TPUClusterResolver for tpu='{address}' (local is a TPU "
            "VM's own, otherwise a Cloud TPU name or grpc://host:port); "
            "ConnectionRefusedError: [Errno 111] Connection refused"
        )
        assert not calls
