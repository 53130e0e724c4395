"""Downloads a dataset and prepares it with tfds, unless a folder holds it already.

python -m experiments.prepare --dataset=svhn
"""

import sys

from experiments.cli import configuration
from experiments.runs import data
from interflow_jax.data import tfds_folders


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    flags = configuration.parser("prepare", (__doc__ or "").partition("\n\n")[0])
    flags.add_argument("--dataset", required=True, help="as in experiments.run")
    flags.add_argument("--data_dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    given = flags.parse_args(arguments)
    try:
        dataset = data.load(given.dataset, given.data_dir, image_size=None)
    except ValueError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    if given.dataset != "fashion_mini" and not given.dataset.startswith("folder:"):
        tfds_name = data.datasets.recipe(given.dataset).tfds_name
        print(f"{given.dataset} is in {tfds_folders.find(tfds_name, given.data_dir)}")
    print(
        f"{len(dataset.train):,} training and {len(dataset.test):,} test images of "
        f"{dataset.image_shape}, {len(dataset.class_names)} classes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
