"""Trains and evaluates one of the paper's methods or a baseline: the main command."""

import shlex

from interflow_jax.cli import console, data, hosts
from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.parser import parse_run
from interflow_jax.cli.single import Runs
from interflow_jax.config import VGG
from interflow_jax.networks import load_network, network_layers
from interflow_jax.vgg import StrideVGG


def main(arguments: list[str], detect: bool = False) -> int:
    """Runs the command; `detect` is that of `hosts.joined`."""
    config = parse_run(arguments)
    if config.places.list_layers:
        _print_layers(config)
        return 0
    command = shlex.join(["python", "-m", "interflow_jax", "run", *arguments])
    with hosts.joined(config.places, detect):
        results = list(Runs(config, command).results())
        if len(results) > 1:
            print(console.several(results), flush=True)
    return 0


def _print_layers(config: RunConfig) -> None:
    """Prints what can be tapped in the backbone, for the dataset's images."""
    model, dataset = config.model, config.data.dataset
    shape = data.load(dataset, config.places.data_dir, config.data.image_size).image_shape
    if model.backbone == VGG:
        # Branches follow whole convolutions, named by number.
        network = StrideVGG(
            (model.depth,), model.depth, model.width, model.downsample, model.layout
        )
        rows = {layer.path.removeprefix("conv"): layer for layer in network_layers(network, shape)}
        rows = {name: layer for name, layer in rows.items() if name.isdigit()}
    else:
        network = load_network(model.backbone, model.backbone_options)
        rows = {layer.path: layer for layer in network_layers(network, shape)}
    print(f"layers for --taps, and the shapes that they give for one {dataset} image:")
    for name, layer in rows.items():
        print(f"  {name}  {' x '.join(map(str, layer.shape[1:]))}")
