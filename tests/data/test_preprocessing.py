"""Crops, flips and normalisation, drawn from (seed, epoch, step) alone (paper, IV-B)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax.data import preprocessing
from interflow_jax.data.preprocessing import PADDING, Preprocessing, epoch_keys, for_training

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8))
PLAIN = Preprocessing((0.1,) * 3, (0.2,) * 3, augment=False)


def candidates(image):
    """All 81 crops of a padded image, plain and mirrored."""
    height, width, _ = image.shape
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    for row in range(2 * PADDING + 1):
        for column in range(2 * PADDING + 1):
            crop = padded[row : row + height, column : column + width]
            yield (row, column, False), crop
            yield (row, column, True), crop[:, ::-1]


def test_every_image_becomes_one_of_its_crops():
    images = np.random.default_rng(0).integers(1, 256, (600, 6, 5, 3), np.uint8)
    augmented = np.asarray(jax.jit(preprocessing.crop_and_flip)(jax.random.key(0), images))
    assert augmented.dtype == np.uint8
    drawn = []
    for image, result in zip(images, augmented, strict=True):
        drawn.append(next(name for name, crop in candidates(image) if np.array_equal(crop, result)))
    rows, columns, flips = zip(*drawn, strict=True)
    # 600 draws: each of the 9 offsets comes, and half are mirrored within 4 standard errors.
    assert set(rows) == set(columns) == set(range(9))
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / np.sqrt(600)


def test_normalisation_by_hand():
    halves = Preprocessing((0.5, 0.25), (0.5, 0.125), augment=False)
    pixels = np.array([[[[0, 255], [51, 102]]]], np.uint8)
    expected = [[[[-1.0, 6.0], [(0.2 - 0.5) / 0.5, (0.4 - 0.25) / 0.125]]]]
    np.testing.assert_allclose(
        preprocessing.normalize(halves, jnp.asarray(pixels)), expected, rtol=1e-6
    )
    np.testing.assert_array_equal(
        for_training(PLAIN, IMAGES, epoch_keys(0, 0), jnp.asarray(0)),
        preprocessing.normalize(PLAIN, IMAGES),
    )


@pytest.mark.parametrize(
    "draw",
    [
        lambda keys, step: for_training(PLAIN._replace(augment=True), IMAGES, keys, step),
        lambda keys, step: preprocessing.crop_draws(keys, 4, step),
    ],
)
def test_draws_depend_on_seed_epoch_and_step_alone(draw):
    first = np.asarray(draw(epoch_keys(0, 1), 2))
    np.testing.assert_array_equal(first, draw(epoch_keys(0, 1), 2))
    for seed, epoch, step in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert np.any(first != draw(epoch_keys(seed, epoch), step))


def test_initial_parameters_and_epochs_never_share_a_key():
    keys = [
        preprocessing.initial_key(0),
        *(key for epoch in range(50) for key in epoch_keys(0, epoch)),
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_images_that_the_host_has_cut_out_are_only_mirrored():
    cut = PLAIN._replace(augment=True, resized_crop=True)
    batch = for_training(cut, IMAGES, epoch_keys(0, 0), jnp.asarray(0))
    same, mirrored = (
        np.array([np.array_equal(a, b) for a, b in zip(batch, whole, strict=True)])
        for whole in (
            preprocessing.normalize(PLAIN, IMAGES),
            preprocessing.normalize(PLAIN, IMAGES[:, :, ::-1]),
        )
    )
    assert np.all(same != mirrored)
    assert 2 < same.sum() < 14
