"""Batches for training: a recipe's selection and pipeline, patient-disjoint shards, and the tf.data service."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.augmentation import Augmentation
from liverseg_tf.data.cases import Case
from liverseg_tf.data.lesion_synthesis import LesionSynthesis
from liverseg_tf.data.reading import open_volume
from liverseg_tf.data.slice_options import SliceSelection
from liverseg_tf.data.slices import training_batches
from liverseg_tf.errors import CaseError, ConfigError, ServerError
from liverseg_tf.training.recipes import Recipe

_ANSWER_SECONDS = 10.0
# Decoded slices of data sets up to this size are cached in memory in the first epoch.
_CACHE_BYTES = 1 << 30


def recipe_selection(recipe: Recipe) -> SliceSelection:
    """The cases and slices that a recipe takes."""
    return SliceSelection(recipe.every_volume, recipe.every_slice, recipe.order, recipe.only_liver)


def cache_for(cases: Sequence[Case]) -> str | None:
    """`cache` of `slice_dataset`: "memory" if the decoded slices take little memory, else none."""
    # three bytes per pixel: int16 HU and a uint8 label; compressed files have about a third of that
    size = sum(path.stat().st_size for case in cases for path in case.files)
    compressed = any(case.volume.name.endswith(".gz") or case.series is not None for case in cases)
    return "memory" if size * (4 if compressed else 1) < _CACHE_BYTES else None


def recipe_batches(
    cases: Sequence[Case],
    recipe: Recipe,
    config: ModelConfig,
    batch_size: int,
    steps: int,
    *,
    selection: SliceSelection,
    **options: Any,
) -> tf.data.Dataset:
    """The training batches of a recipe, for `train` and for the learning-rate finder.

    Args:
        cases: the result of `recipe_selection`.
        recipe: gives augmentation, lesion synthesis and proportions.
        config: the model's configuration; gives channels, HU range and image size.
        batch_size, steps: see `training_batches`.
        selection: of slices; all cases are used.
        options: further ones of `training_batches`.

    Returns:
        As `training_batches`.
    """
    return training_batches(
        cases,
        config.image_size,
        batch_size,
        steps,
        classes=len(config.class_names),
        channels=config.channels,
        hu_range=config.hu_range,
        selection=replace(selection, every_volume=1),
        cache=cache_for(cases),
        proportions=recipe.proportions,
        augmentation=Augmentation() if recipe.augmentation else None,
        synthesis=LesionSynthesis() if recipe.lesion_synthesis else None,
        **options,
    )


def patient_shards(cases: Sequence[Case], count: int) -> list[list[Case]]:
    """Divide patients into shards of about the same number of voxels; no patient is in two shards.

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
        voxels[case.patient] = voxels.get(case.patient, 0) + int(np.prod(open_volume(case.volume, case.series).shape))
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
    """Batches that are concatenations of one batch from each dataset."""
    if len(datasets) == 1:
        return datasets[0]
    joined = tf.data.Dataset.zip(*datasets)
    return joined.map(lambda *parts: tf.nest.map_structure(lambda *tensors: tf.concat(tensors, 0), *parts))


def through_service(dataset: tf.data.Dataset, service: str) -> tf.data.Dataset:
    """Let the workers of a tf.data service compute an endless dataset of epochs.

    Each worker of the service computes whole epochs, so no slice occurs twice in an epoch. Batches arrive in the order
    in which they are completed.

    Args:
        dataset: from `training_batches`. It has only graph operations, which the service's workers run on their hosts,
            where the files must have the same paths.
        service: address of the dispatcher, as "grpc://host:port".
    """
    return dataset.apply(
        tf.data.experimental.service.distribute(tf.data.experimental.service.ShardingPolicy.DYNAMIC, service)
    )


def check_service(service: str) -> None:
    """Check that a dispatcher's address is well formed and answers; TensorFlow itself would try for an hour.

    Raises:
        ConfigError: if the address is not "grpc://host:port".
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
        # Without this, workers would have to agree before each step on whether another one follows.
        return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    return strategy.distribute_datasets_from_function(per_replica)
