"""Examples in progress through a model, packed into batches of a few sizes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass
class Group:
    """Examples in progress: rows of what a program returned, and their numbers."""

    carry: tuple[Array, ...]
    rows: np.ndarray
    numbers: np.ndarray

    def first(self, count: int) -> "Group":
        return Group(self.carry, self.rows[:count], self.numbers[:count])

    def after(self, count: int) -> "Group":
        return Group(self.carry, self.rows[count:], self.numbers[count:])

    def packed(self, size: int) -> tuple[Array, ...]:
        """The rows in order, then arbitrary ones up to `size`."""
        if len(self.carry[0]) == size and np.array_equal(self.rows, np.arange(len(self.rows))):
            return self.carry
        return _take(_filled(self.rows, size), self.carry)


def joined(first: Group, second: Group, most: int) -> Group:
    """Both groups as one, of at most twice the largest batch."""
    rows = np.concatenate([first.rows, len(first.carry[0]) + second.rows])
    size = most if len(rows) <= most else 2 * most  # few shapes, so few compilations
    carry = _take(_filled(rows, size), first.carry, second.carry)
    return Group(carry, np.arange(len(rows)), np.concatenate([first.numbers, second.numbers]))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, (0, size - len(rows)))


@jax.jit
def _take(rows: Array, *carries: tuple[Array, ...]) -> tuple[Array, ...]:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[rows], *carries)
