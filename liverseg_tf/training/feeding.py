"""How batches reach the workers of a training: patient-disjoint shards, and tf.data service."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from liverseg_tf.data.cases import Case
from liverseg_tf.data.nifti import open_nifti
from liverseg_tf.errors import CaseError, ConfigError, ServerError

_ANSWER_SECONDS = 10.0


def patient_shards(cases: Sequence[Case], count: int) -> list[list[Case]]:
    """Share patients out so that the shards hold about equally many voxels and no patient is in two of them.

    Args:
        cases: at least `count` patients.
        count: number of shards.

    Returns:
        `count` lists of cases, each in the order of `cases`; the same for the same cases.

    Raises:
        CaseError: if there are fewer patients than shards.
    """
    if count == 1:
        return [list(cases)]
    voxels: dict[str, int] = {}
    for case in cases:
        voxels[case.patient] = voxels.get(case.patient, 0) + int(np.prod(open_nifti(case.volume).shape))
    if len(voxels) < count:
        raise CaseError(
            f"expected at least one patient to train on for each of {count} data shards, got {len(voxels)}; "
            "use fewer workers or data shards"
        )
    loads, shard_of = [0] * count, {}
    for patient in sorted(voxels, key=lambda p: (-voxels[p], p)):
        shard_of[patient] = loads.index(min(loads))
        loads[shard_of[patient]] += voxels[patient]
    return [[case for case in cases if shard_of[case.patient] == index] for index in range(count)]


def side_by_side(datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    """Batches that consist of one batch of each dataset, one behind another."""
    if len(datasets) == 1:
        return datasets[0]
    joined = tf.data.Dataset.zip(*datasets)
    return joined.map(lambda *parts: tf.nest.map_structure(lambda *tensors: tf.concat(tensors, 0), *parts))


def through_service(dataset: tf.data.Dataset, service: str) -> tf.data.Dataset:
    """Let the workers of a tf.data service make an endless dataset of epochs.

    Each worker of the service makes whole epochs, so no slice of an epoch comes twice. The order in which the epochs'
    batches come is the order in which they are ready.

    Args:
        dataset: of `training_batches`: graph operations alone, which the service's workers run on their own hosts.
            They open the files by the same paths.
        service: address of the dispatcher, as "grpc://host:port".
    """
    return dataset.apply(
        tf.data.experimental.service.distribute(tf.data.experimental.service.ShardingPolicy.DYNAMIC, service)
    )


def check_service(service: str) -> None:
    """Make sure that a dispatcher's address is well formed and answers; TensorFlow itself would try for an hour.

    Raises:
        ConfigError: for another form than "grpc://host:port".
        ServerError: if nothing answers there.
    """
    match = re.fullmatch(r"grpc://\[?([^/\s]+?)\]?:(\d{1,5})", service)
    if not match or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"data service: expected the dispatcher as grpc://host:port. Received: {service!r}")
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise ServerError(
            f"{service}: expected tf.data's dispatcher, nothing answers ({error}); start one, or train without"
        ) from None


def distributed(
    make_batches: Callable[[], tf.data.Dataset], strategy: tf.distribute.Strategy, replica_batch: int
) -> tf.distribute.DistributedDataset:
    """Hand this worker's batches to its replicas, `replica_batch` slices each."""

    def per_replica(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = make_batches().rebatch(replica_batch, drop_remainder=True)
        # Told that they never end, the workers need not agree before each step on whether there is another.
        return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    return strategy.distribute_datasets_from_function(per_replica)
