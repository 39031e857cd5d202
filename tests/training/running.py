"""What the tests of runs share."""

import dataclasses


def on_replicas(config, count):
    """The same global batch, on so many replicas."""
    return dataclasses.replace(
        config,
        distribution_strategy="mirrored",
        num_replicas=count,
        replica_batch_size=config.replica_batch_size // count,
    )


def weights(result):
    return [variable.numpy() for variable in result.model.variables]


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]
