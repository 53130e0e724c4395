"""What every flag of a run is, beside those of `ModelConfig`: its name, default, range and help."""

import math
from dataclasses import dataclass
from typing import Literal

from interflow_jax.data.pictures import LARGEST_SIDE, Resize
from interflow_jax.data.recipes import recipe
from interflow_jax.optimizer import LEARNING_RATE, WEIGHT_DECAY, Optimizer, Schedule
from interflow_jax.steps import BATCH_SIZE
from interflow_jax.training_recipe import RecipeName


@dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
      dataset: cifar10, cifar100, svhn, mnist, kmnist, fashion_mnist, fashion_mini (a sample that
        ships), folder:PATH for PATH/train/CLASS/*.png and PATH/test/..., or the tfds name of any
        dataset with image and label.
      train_size: train on the first n examples of the split's fixed permutation; None for all.
      image_size: resize images to n x n; None for the dataset's own size, 32 where it varies.
      resize: of images of another shape, squash changes the aspect ratio, crop cuts to the centre,
        pad keeps all and adds borders.
      normalize: by the mean and deviation of the training images, or of ImageNet's.
      augment: random flips of training images, and crops of their padded form or of resized boxes;
        None for the paper's, crop_flip for CIFAR.
    """

    dataset: str = "fashion_mini"
    train_size: int | None = None
    image_size: int | None = None
    resize: Resize = "squash"
    normalize: Literal["dataset", "imagenet"] = "dataset"
    augment: Literal["none", "crop_flip", "random_resized_crop"] | None = None

    def augments(self) -> bool:
        """Whether training images are cropped and flipped at random."""
        return recipe(self.dataset).augment if self.augment is None else self.augment != "none"


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains.

    Attributes:
      recipe: paper (IV-B), or modern, the best of seven on small sets; for the flags of training,
        augmentation and regularisation that are not given; None for modern with folder:PATH, else
        paper.
      seed: of the initial parameters, the order of examples, the augmentation.
      epochs: passes over the training split; None for the paper's, CIFAR 100, others 40, and
        fashion_mini 3.
      batch_size: examples per step, over all devices.
      optimizer: of the parameters; nesterov is sgd with that momentum.
      learning_rate: at the start, or after the warmup.
      momentum: of all but adamw; None for 0.95.
      weight_decay: of every parameter; of adamw decoupled.
      schedule: of the learning rate, a drop to a tenth, or half a cosine.
      drop_after: share of the training before the drop; None for the paper's, CIFAR 0.8, others
        0.5.
      warmup_epochs: over which the learning rate rises from zero.
      clip_norm: the largest norm of a gradient; None for any.
      auxiliary_mean: weight of the mean of all branches' own losses, added to the loss; of Aux and
        DSN in place of their sum.
      distillation: weight of the branches' mean divergence from the fused prediction, their
        teacher, added to the loss.
      pretrained: file of the backbone's parameters to start from, *.safetensors or Flax msgpack, or
        the folder of a finished run on it, whose other layers are taken where they match.
    """

    recipe: RecipeName = "paper"
    seed: int = 0
    epochs: int | None = None
    batch_size: int = BATCH_SIZE
    optimizer: Optimizer = "sgd"
    learning_rate: float = LEARNING_RATE
    momentum: float | None = None
    weight_decay: float = WEIGHT_DECAY
    schedule: Schedule = "step"
    drop_after: float | None = None
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    auxiliary_mean: float = 0.0
    distillation: float = 0.0
    pretrained: str | None = None


@dataclass(frozen=True)
class RegularizationConfig:
    """What keeps a run from learning its training images by heart.

    Attributes:
      label_smoothing: share of a label that goes to all classes alike.
      mixup: alpha of the Beta distribution by which pairs of images, and their labels, are mixed; 0
        for none.
      class_weights: of the losses, balanced weighs classes alike, however many images they have.
      ema: decay per step of the mean of all steps' weights, by which the run evaluates and which it
        saves; 0 for the last step's weights.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    ema: float = 0.0


@dataclass(frozen=True)
class SelectionConfig:
    """When a run evaluates and ends, and which of its epochs it keeps.

    Attributes:
      evaluate_every: epochs between evaluations; the last epoch always has one.
      keep: weights of the last epoch, or of the one best on held-out images: of the training images
        beyond --train_size, up to a tenth as many as are trained on.
      patience: end at the first evaluation after so many epochs without a better accuracy on
        held-out images; None for never.
    """

    evaluate_every: int = 1
    keep: Literal["last", "best"] = "last"
    patience: int | None = None


@dataclass(frozen=True)
class Places:
    """Where a run happens, how often it saves and what it prints; nothing of what it computes.

    Attributes:
      out: results go to OUT/DATASET/METHOD/seedN.
      data_dir: folder of prepared tfds datasets; None for $TFDS_DATA_DIR, then
        ~/tensorflow_datasets.
      seeds: several, as 0,1,2, one run after the other, in place of --seed.
      checkpoint_minutes: between checkpoints within an epoch.
      list_layers: print what can be tapped in the backbone, and end.
      coordinator: of a run on several hosts, address of process 0 and a free port, as
        10.0.0.1:1234.
      processes: how many such processes there are; None for those that Slurm, Open MPI, Kubernetes
        or Cloud TPU started, else 1.
      process: which of them this is, from 0.
    """

    out: str = "runs"
    data_dir: str | None = None
    seeds: tuple[int, ...] | None = None
    checkpoint_minutes: float = 3.0
    list_layers: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


BOUNDS = {  # lowest and highest value; memory or patience would end a run beyond the latter
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "train_size": (1, math.inf),
    "image_size": (1, LARGEST_SIDE),
    "checkpoint_minutes": (1e-6, 1e6),
    "learning_rate": (0.0, 1e6),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, 1e6),
    "drop_after": (0.0, 1.0),
    "clip_norm": (1e-6, 1e6),
    "label_smoothing": (0.0, 0.999),
    "mixup": (0.0, 100.0),
    "ema": (0.0, 0.999999),
    "evaluate_every": (1, 1_000_000),
    "patience": (1, 1_000_000),
    "auxiliary_mean": (0.0, 1e6),
    "distillation": (0.0, 1e6),
    "width": (1e-6, 64),
    "seed": (0, 2**32 - 1),
}
