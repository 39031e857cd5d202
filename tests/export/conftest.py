"""What the tests of exporting share."""

import pytest

from tfnorm import training


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The model_dir of a training run of one step: its moving statistics are hardly moved."""
    directory = str(tmp_path_factory.mktemp("run"))
    config = training.Config(
        model="resnet8", width=4, norm="brn", steps=1, replica_batch_size=4, model_dir=directory
    )
    training.train(config, validate=False)
    return directory
