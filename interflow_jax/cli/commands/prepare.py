"""Downloads a dataset and prepares it with tfds, unless a folder holds it already."""

from interflow_jax.cli import data
from interflow_jax.cli.parser import Parser, add_data_dir
from interflow_jax.data import recipes


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parser = Parser("prepare", (__doc__ or "") + "\ninterflow prepare --dataset=svhn")
    parser.add_argument("--dataset", required=True, help="as in interflow run")
    add_data_dir(parser)
    given = parser.parse_args(arguments)
    dataset = data.load(given.dataset, given.data_dir, image_size=None)
    if given.dataset != "fashion_mini" and not given.dataset.startswith("folder:"):
        print(f"{given.dataset} is in {recipes.find(given.dataset, given.data_dir)}")
    print(
        f"{len(dataset.train):,} training and {len(dataset.test):,} test images of "
        f"{dataset.image_shape}, {len(dataset.class_names)} classes"
    )
    return 0
