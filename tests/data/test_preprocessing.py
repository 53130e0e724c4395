"""Crops, flips and normalisation, drawn from (seed, epoch, step) alone (paper, IV-B)."""

import jax
import jax.numpy as jnp
import numpy as np

from interflow_jax.data.preprocessing import (
    PADDING,
    Preprocessing,
    crop_and_flip,
    crop_draws,
    epoch_keys,
    for_training,
    initial_key,
    normalize,
)


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
    augmented = np.asarray(jax.jit(crop_and_flip)(jax.random.key(0), images))
    assert augmented.dtype == np.uint8
    drawn = []
    for image, result in zip(images, augmented, strict=True):
        matches = [name for name, crop in candidates(image) if np.array_equal(crop, result)]
        assert matches
        drawn.append(matches[0])
    rows, columns, flips = zip(*drawn, strict=True)
    # 600 draws: each of the 9 offsets comes, and half are mirrored within 4 standard errors.
    assert set(rows) == set(columns) == set(range(9))
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / np.sqrt(600)


def test_normalisation_by_hand():
    preprocessing = Preprocessing((0.5, 0.25), (0.5, 0.125), augment=False)
    pixels = np.array([[[[0, 255], [51, 102]]]], np.uint8)
    expected = [[[[-1.0, 6.0], [(0.2 - 0.5) / 0.5, (0.4 - 0.25) / 0.125]]]]
    np.testing.assert_allclose(normalize(preprocessing, jnp.asarray(pixels)), expected, rtol=1e-6)


def test_draws_depend_on_seed_epoch_and_step_alone():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8))
    augmenting = Preprocessing((0.0,) * 3, (1.0,) * 3, augment=True)

    def batch(seed, epoch, step):
        return np.asarray(for_training(augmenting, images, epoch_keys(seed, epoch), step))

    np.testing.assert_array_equal(batch(0, 1, 2), batch(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert np.any(batch(0, 1, 2) != batch(*other))


def test_initial_parameters_and_epochs_never_share_a_key():
    keys = [initial_key(0), *(key for epoch in range(50) for key in epoch_keys(0, epoch))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_without_augmentation_pixels_are_only_normalised():
    images = jnp.arange(48, dtype=jnp.uint8).reshape(1, 4, 4, 3)
    plain = Preprocessing((0.1,) * 3, (0.2,) * 3, augment=False)
    np.testing.assert_array_equal(
        for_training(plain, images, epoch_keys(0, 0), jnp.asarray(0)), normalize(plain, images)
    )


def test_images_that_the_host_has_cut_out_are_only_mirrored():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8))
    cut = Preprocessing((0.0,) * 3, (1.0,) * 3, augment=True, resized_crop=True)
    batch = for_training(cut, images, epoch_keys(0, 0), jnp.asarray(0))
    whole = normalize(cut, images)
    same = [bool((a == b).all()) for a, b in zip(batch, whole, strict=True)]
    mirrored = [bool((a == b[:, ::-1]).all()) for a, b in zip(batch, whole, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 2 < sum(same) < 14


def test_crops_depend_on_seed_epoch_and_step_alone():
    def draws(seed, epoch, step):
        return crop_draws(epoch_keys(seed, epoch), 4, step)

    np.testing.assert_array_equal(draws(0, 1, 2), draws(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert np.all(draws(0, 1, 2) != draws(*other))
