"""From flags to a tf.distribute.Strategy."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfnorm.errors import RunError, UserError
from tfnorm.training import agreement, cluster, rendezvous
from tfnorm.training.config import Config
from tfnorm.training.notices import to_stderr


def create(config: Config) -> tf.distribute.Strategy:
    """Makes the strategy of a run. On machines without GPU, replicas are logical CPU devices.

    Raises:
        UserError: There are not as many devices as replicas, or no TPU, or no TF_CONFIG.
    """
    return _STRATEGIES[config.distribution_strategy](config)


def prepare_cpu_devices(count: int) -> None:
    """Sees to it that there are at least so many logical CPU devices.

    A process that makes several runs calls it once, first, with the largest number of replicas:
    TensorFlow fixes the number when it runs its first operation.

    Raises:
        UserError: TensorFlow has already started with fewer.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(configured) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError:
        raise UserError(
            f"num_replicas={count} is more than the {len(configured)} logical CPU devices with "
            "which TensorFlow has started; call "
            f"tfnorm.training.strategies.prepare_cpu_devices({count}) before anything else"
        ) from None


def _one_device(config: Config) -> tf.distribute.Strategy:
    del config
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return tf.distribute.OneDeviceStrategy(f"{kind}:0")


def _mirrored(config: Config) -> tf.distribute.Strategy:
    gpus = len(tf.config.list_physical_devices("GPU"))
    replicas = config.num_replicas or max(gpus, 1)
    if not gpus:
        prepare_cpu_devices(replicas)
        return tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(replicas)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    if replicas > gpus:
        raise UserError(
            f"num_replicas={replicas} is more than the {gpus} GPUs of this machine; "
            f"choose --num_replicas={gpus} or fewer"
        )
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas)])


def _multi_worker_mirrored(config: Config) -> tf.distribute.Strategy:
    members = cluster.read(os.environ.get("TF_CONFIG", ""))
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus and config.num_replicas not in (0, gpus):
        raise UserError(
            f"num_replicas={config.num_replicas}, but each worker takes part with all of its "
            f"{gpus} GPUs; leave --num_replicas out, or hide GPUs with CUDA_VISIBLE_DEVICES"
        )
    replicas = 0 if gpus else max(config.num_replicas, 1)
    if replicas not in _joined:
        rendezvous.meet(members, agreement.saying(config), config.worker_timeout, to_stderr)
        _joined[replicas] = _join_cluster(replicas)
    return _joined[replicas]


# A process joins its cluster once, and numbers all collectives in one sequence.
_joined: dict[int, tf.distribute.Strategy] = {}


def _join_cluster(cpu_replicas: int) -> tf.distribute.Strategy:
    try:
        with _signals_kept():
            if cpu_replicas:
                prepare_cpu_devices(cpu_replicas)
                return _CpuWorkers(cpu_replicas)
            return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"cannot join the cluster of TF_CONFIG={os.environ['TF_CONFIG']} ({reason})"
        ) from error


class _CpuWorkers(tf.distribute.MultiWorkerMirroredStrategy):
    """Workers with any number of replicas each on machines without GPU, for tests and rehearsals.

    TensorFlow's own class has one replica a worker there, and takes one for lost that has not been
    heard of for 10 seconds, as happens where many processes share few cores. There is no public
    argument for either: this one overrides the method that names a worker's devices, and the one
    that configures its server (TensorFlow 2.20, 2.21).
    """

    def __init__(self, replicas: int) -> None:
        from tensorflow.python.distribute import collective_all_reduce_strategy

        class Extended(collective_all_reduce_strategy.CollectiveAllReduceExtended):
            def _initialize_local_devices(self, resolver: Any, worker: str) -> tuple:
                return tuple(f"{worker}/device:CPU:{i}" for i in range(replicas)), "CPU"

            def _update_config_proto(self, config: Any) -> Any:
                config = super()._update_config_proto(config)
                coordination = config.experimental.coordination_config
                coordination.heartbeat_timeout_in_ms = 30_000
                coordination.cluster_register_timeout_in_ms = 300_000  # All are there already.
                return config

        options = tf.distribute.experimental.CommunicationOptions()
        tf.distribute.Strategy.__init__(self, Extended(self, None, options))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Lets Ctrl-C end a process that waits for other workers to join, and takes SIGTERM back after.

    TensorFlow waits in C++ and with Python's lock, so that no handler of ours runs; and it takes
    SIGTERM for itself: in that time, short as all workers are there, only Ctrl-C and SIGKILL end
    it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _tpu(config: Config) -> tf.distribute.Strategy:
    try:
        _knock(config.tpu)
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=config.tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # Each kind of address fails in its own way.
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:100]
        raise UserError(
            f"found no TPU: looked with TPUClusterResolver for tpu='{config.tpu}' "
            "(local is a TPU VM's own, otherwise a Cloud TPU name or grpc://host:port); "
            f"{reason}"
        ) from error
    strategy = tf.distribute.TPUStrategy(resolver)
    if config.num_replicas not in (0, strategy.num_replicas_in_sync):
        raise UserError(
            f"num_replicas={config.num_replicas}, but TPU '{config.tpu}' has "
            f"{strategy.num_replicas_in_sync} replicas; choose as many"
        )
    return strategy


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at a grpc address: TensorFlow would wait for minutes."""
    if address.startswith("grpc://"):
        host, _, port = address.removeprefix("grpc://").partition(":")
        socket.create_connection((host, int(port or 8470)), timeout=10).close()


_STRATEGIES = {
    "one_device": _one_device,
    "mirrored": _mirrored,
    "multi_worker_mirrored": _multi_worker_mirrored,
    "tpu": _tpu,
}
