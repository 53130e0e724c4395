"""How to train: the paper's way (IV-B), or the best of seven on small sets."""

from typing import Literal, NamedTuple, get_args

from interflow_jax.data.recipes import RECIPES
from interflow_jax.optimizer import LEARNING_RATE, WEIGHT_DECAY, Optimizer, Schedule
from interflow_jax.steps import BATCH_SIZE

RecipeName = Literal["paper", "modern"]


class TrainingRecipe(NamedTuple):
    """Fields of a run that a recipe decides, by default as the paper does."""

    batch_size: int = BATCH_SIZE
    optimizer: Optimizer = "sgd"
    learning_rate: float = LEARNING_RATE
    momentum: float | None = None
    weight_decay: float = WEIGHT_DECAY
    schedule: Schedule = "step"
    warmup_epochs: float = 0.0
    augment: Literal["crop_flip"] | None = None  # None for the dataset's
    label_smoothing: float = 0.0
    ema: float = 0.0


_MODERN = TrainingRecipe(  # by experiments/tables/recipes.py
    batch_size=16,
    optimizer="nesterov",
    learning_rate=0.0075,
    momentum=0.9,
    schedule="cosine",
    augment="crop_flip",
    label_smoothing=0.1,
    ema=0.98,
)


def default_recipe(name: str, arrays: bool = False) -> RecipeName:
    """Modern for pictures of one's own, in folders or arrays; the paper's for all else."""
    own = arrays or name.startswith("folder:")
    return "modern" if own and name not in RECIPES else "paper"


def training_recipe(name: RecipeName, epochs: int, batch_size: int | None = None) -> TrainingRecipe:
    """A recipe, for so many epochs, over the first tenth of which "modern" warms up.

    That scales its rate in proportion to the batch size; None is the recipe's own. Raises
    ValueError for another name.
    """
    if name not in get_args(RecipeName):
        raise ValueError(f"recipe is {name!r}; choose one of {', '.join(get_args(RecipeName))}")
    if name == "paper":
        return TrainingRecipe(batch_size=BATCH_SIZE if batch_size is None else batch_size)
    own = _MODERN.batch_size if batch_size is None else batch_size
    rate = _MODERN.learning_rate * own / _MODERN.batch_size
    return _MODERN._replace(batch_size=own, learning_rate=rate, warmup_epochs=epochs / 10)
