"""How batches reach a training: what a recipe feeds on, patient-disjoint shards, and tf.data service."""

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
from liverseg_tf.data.nifti import open_nifti
from liverseg_tf.data.slice_options import SliceSelection
from liverseg_tf.data.slices import training_batches
from liverseg_tf.errors import CaseError, ConfigError, ServerError
from liverseg_tf.training.recipes import Recipe

_ANSWER_SECONDS = 10.0
# Decoded slices of data sets up to this size are kept in memory from the first epoch on.
_CACHE_BYTES = 1 << 30


def recipe_selection(recipe: Recipe) -> SliceSelection:
    """The cases and slices that a recipe takes."""
    return SliceSelection(recipe.every_volume, recipe.every_slice, recipe.order, recipe.only_liver)


def cache_for(cases: Sequence[Case]) -> str | None:
    """`cache` of `slice_dataset`: memory where the decoded slices take little of it, else none."""
    # three bytes a pixel: int16 HU and a uint8 label; compressed files hold about a third of that
    size = sum(path.stat().st_size for case in cases for path in case.files)
    compressed = any(case.volume.name.endswith(".gz") for case in cases)
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
    """The batches that a recipe trains a model on; every training, and the learning-rate finder, gets its own here.

    Args:
        cases: those that `recipe_selection` chose.
        recipe: augmentation, lesion synthesis and proportions are its.
        config: channels, HU range and image size are the model's.
        batch_size, steps: see `training_batches`.
        selection: of slices; all cases are taken.
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
