"""Order of examples, augmentation and normalisation: functions of (seed, epoch, step) alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from interflow_jax.data import pictures

PADDING = 4  # zero pixels on every side before the random crop (paper, IV-B)


class EpochKeys(NamedTuple):
    """Keys of an epoch: for the order of its examples, and for what its steps draw."""

    order: Array
    steps: Array


class Preprocessing(NamedTuple):
    """What happens to pixels before the model sees them (paper, IV-B)."""

    mean: tuple[float, ...]  # of every channel, for pixels in [0, 1]
    deviation: tuple[float, ...]  # standard deviation, likewise
    augment: bool  # training images, by random crops and flips
    resized_crop: bool = False  # those crops like Inception's, of the pictures that the host reads


_IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of its training images, as most weights for it expect
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def imagenet_preprocessing(
    image_shape: tuple[int, int, int], augment: bool, resized_crop: bool = False
) -> Preprocessing:
    """ImageNet's statistics; raises ValueError for images without exactly three channels."""
    if image_shape[-1] != len(_IMAGENET_MEAN):
        raise ValueError(
            f"ImageNet's mean and deviation are of 3 channels, and the images have "
            f"{image_shape[-1]}; normalize by the dataset's"
        )
    return Preprocessing(_IMAGENET_MEAN, _IMAGENET_DEVIATION, augment, resized_crop)


def initial_key(seed: int) -> Array:
    """The key of a run's initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def epoch_keys(seed: int, epoch: int) -> EpochKeys:
    """The keys of an epoch, counted from 0."""
    data_key = jax.random.fold_in(jax.random.key(seed), 1)
    return EpochKeys(*jax.random.split(jax.random.fold_in(data_key, epoch)))


def dropout_key(keys: EpochKeys, step: Array) -> Array:
    """The key for what a model draws in a step, as `nn.Dropout` does; not that of augmentation."""
    # JAX folds 0 and 1 in when it splits a step's key for crops and flips.
    return jax.random.fold_in(jax.random.fold_in(keys.steps, step), 2)


def crop_draws(keys: EpochKeys, batch_size: int, step: int) -> np.ndarray:
    """The draws behind a step's resized crops, [batch, pictures.TRIES, 4], uniform in [0, 1)."""
    generator = np.random.default_rng([*np.asarray(jax.random.key_data(keys.steps)), step])
    return generator.random((batch_size, pictures.TRIES, 4), np.float32)


def for_training(
    preprocessing: Preprocessing, images: Array, keys: EpochKeys, step: Array
) -> Array:
    """Augments, if asked to, and normalises images of a step, counted from the epoch's start."""
    if preprocessing.augment:
        augment = flip if preprocessing.resized_crop else crop_and_flip
        images = augment(jax.random.fold_in(keys.steps, step), images)
    return normalize(preprocessing, images)


def crop_and_flip(key: Array, images: Array) -> Array:
    """Crops each of [batch, height, width, channels] from its zero-padded form; mirrors half."""
    batch, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * PADDING + 1)
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def crop(image: Array, corner: Array) -> Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, image.shape[-1]))

    return flip(flip_key, jax.vmap(crop)(padded, corners))


def flip(key: Array, images: Array) -> Array:
    """Mirrors half of [batch, height, width, channels]."""
    flips = jax.random.bernoulli(key, 0.5, (len(images),))
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def normalize(preprocessing: Preprocessing, images: Array) -> Array:
    """Scales [..., channels], uint8, to [0, 1], centres and scales every channel: float32."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(preprocessing.mean, jnp.float32).reshape(shape)
    deviation = jnp.asarray(preprocessing.deviation, jnp.float32).reshape(shape)
    return (images.astype(jnp.float32) / 255 - mean) / deviation
