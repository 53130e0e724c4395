"""The command line: every field of a run's configuration as a flag, and lists as flags."""

import argparse
import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args, get_type_hints

from interflow_jax.cli import config_file
from interflow_jax.cli.config import DEFAULT, PARTS, RunConfig, as_flag
from interflow_jax.cli.folder import RunFolder
from interflow_jax.config import choices
from interflow_jax.data.dataset import printable
from interflow_jax.methods import BASELINES, METHODS, look_up
from interflow_jax.training_recipe import TrainingRecipe, default_recipe, training_recipe

_CONFIG = "TOML, or a run's config.json, with fields by the names of these flags, which win"
_TITLES = {
    "regularization": "regularisation",
    "selection": "evaluation and stopping",
    "places": "places and hosts",
}


_LONGEST_LINE = 1000  # characters; the end of an error says what to do, so its middle goes


def one_line(text: str) -> str:
    """An error as one line without control characters, whatever values it names."""
    text = re.sub(r"\S{200,}", lambda word: f"{word[0][:100]}...{word[0][-50:]}", printable(text))
    half = _LONGEST_LINE // 2
    return text if len(text) <= 2 * half else f"{text[:half]} ... {text[-half:]}"


def _parse_list(kind: Callable[[str], Any], repeats: bool = False) -> Callable:
    def parse(text: str) -> tuple[Any, ...]:
        parts = text.split(",")
        try:
            if "" in parts:
                raise ValueError("an empty part")
            values = tuple(map(kind, parts))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list as 1,2 or a,b") from error
        for value in values if not repeats else ():
            if values.count(value) > 1:
                raise argparse.ArgumentTypeError(f"{text!r} has {value} more than once")
        return values

    return parse


integers = _parse_list(int)
numbers = _parse_list(float)
names = _parse_list(str)


def taps(text: str) -> tuple[Any, ...]:
    """Reads "7,9,11" or "stage1,stage2/block1"."""
    return integers(text) if all(part.isdigit() for part in text.split(",")) else names(text)


def _frozen(text: str) -> bool:
    if text not in ("none", "backbone"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither none nor backbone")
    return text == "backbone"


_PARSERS: dict[str, Callable[[str], Any]] = {
    "taps": taps,
    "initial_weights": _parse_list(float, repeats=True),
    "seeds": integers,
    "frozen": _frozen,
}
_ALIASES = {"fully_connected": ["--fc"]}


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line with a one-line error that names close flags and values."""

    def __init__(
        self, command: str, description: str, epilog: str = "", prefix: str = "interflow "
    ):
        self._command = command
        super().__init__(
            prog=f"{prefix}{command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        line = one_line(f"{self._command}: error: {message}; --help lists all flags")
        self.exit(2, f"{line}\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # argparse would give an empty list
            raise argparse.ArgumentError(action, "'--' is no value")
        return super()._get_values(action, arg_strings)  # type: ignore[misc]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            known = {str(choice).casefold(): choice for choice in action.choices or ()}
            close = difflib.get_close_matches(str(value).casefold(), known, n=1)
            error.message += f"; did you mean {known[close[0]]}?" if close else ""
            raise

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            given = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(given, known, n=1)
            self.error(f"unknown flag {given}" + (f"; did you mean {close[0]}?" if close else ""))
        return flags


def add_config(parser: Parser, left_out: Sequence[str] = (), decided: str | None = None) -> None:
    """Adds the fields of `RunConfig` as flags, a group per part; only given ones are parsed.

    Args:
      left_out: fields that are no flags of this command.
      decided: in words, what decides a field that is not given; None for its default.
    """
    for part in PARTS:
        default = getattr(DEFAULT, part)
        group = parser.add_argument_group(_TITLES.get(part, part))
        hints, meanings = get_type_hints(type(default)), _meanings(type(default))
        for field in dataclasses.fields(default):
            if field.name in left_out:
                continue
            about, unset = meanings[field.name]
            flags = [f"--{field.name}", *_ALIASES.get(field.name, [])]
            if hints[field.name] is bool and field.name not in _PARSERS:
                options: dict[str, Any] = {"action": "store_true"}
            else:
                options = _options(field.name, hints[field.name])
                if field.name != "method" and len(options.get("choices", ())) > 4:
                    about += f", {', '.join(options['choices'])}"
                shown = unset if part == "places" else decided or unset
                if shown is None and field.default is not None:
                    shown = as_flag(field.default)
                    if field.name in TrainingRecipe._fields:  # others for pictures of one's own
                        shown += " by the recipe paper"
                about += f" (default: {shown})" if shown else ""
            group.add_argument(*flags, default=argparse.SUPPRESS, help=about, **options)


def _options(name: str, hint: Any) -> dict[str, Any]:
    metavar = "{none,backbone}" if name == "frozen" else name.upper().split("_")[-1]
    allowed = (*METHODS, *BASELINES) if name == "method" else choices(hint)
    if allowed:
        shown = metavar if len(allowed) > 4 else f"{{{','.join(allowed)}}}"
        return {"choices": allowed, "metavar": shown}
    kinds = [kind for kind in (hint, *get_args(hint)) if kind in (int, float, str)]
    return {"type": _PARSERS.get(name) or kinds[0], "metavar": metavar}


def _meanings(kind: type) -> dict[str, tuple[str, str | None]]:
    """What each field means, and its default in words where that is None, by the docstring."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found = {}
    for entry in re.split(r"\n(?=  \w)", text):
        name, _, meaning = " ".join(entry.split()).partition(": ")
        about, _, unset = meaning.rstrip(".").partition("; None for ")
        found[name] = about, unset or None
    return found


def add_run(parser: Parser, about: str) -> None:
    """Adds the flags by which a finished run is opened (see `load_run`)."""
    add = parser.add_argument
    add("--run", required=True, help=about)
    network = "of a run on a network of its own, that network, as package.module:function: nothing"
    add("--backbone", help=f"{network} that a file names is imported without your word")
    trust = "import and call whatever network the run's files name"
    add("--trust_code", action="store_true", help=trust)


def add_data_dir(parser: Parser) -> None:
    """Adds the flag of the folder of prepared datasets."""
    about = "default: $TFDS_DATA_DIR, then ~/tensorflow_datasets"
    parser.add_argument("--data_dir", help=about)


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """Reads the flags of `run`; an invalid one ends the process with status 2."""
    methods, baselines = (
        "\n".join(f"  {name:<10}{method.summary}" for name, method in table.items())
        for table in (METHODS, BASELINES)
    )
    parser = Parser(
        "run",
        "Trains a network with one of the paper's methods or a baseline, evaluates it after every\n"
        "epoch, and leaves metrics, pictures, checkpoints and result.json in a folder. The same\n"
        "command again goes on where it stopped, and returns at once when it is finished.",
        f"methods (paper, Table II):\n{methods}\n\n"
        "baselines (not the paper's methods):\n"
        f"{baselines}\n\nexamples:\n"
        "  interflow run --method=S7\n"
        "  interflow run --method=S7 --dataset=svhn\n"
        "  interflow run --method=S3 --dataset=cifar10 --seeds=0,1,2\n"
        "  interflow run --method=S1 --dataset=cifar10 --depth=60 --width=0.25\n"
        "  interflow run --backbone=jax_resnet:ResNet18 --backbone_options=n_classes=10 \\\n"
        "      --list_layers\n"
        "  interflow run --backbone=jax_resnet:ResNet18 --backbone_options=n_classes=10 \\\n"
        "      --taps=layers_3,layers_5,layers_7 --method=S1\n"
        "\nWithout the package installed: python -m experiments.run, from a checkout.\n",
    )
    parser.add_argument("--config", metavar="FILE", help=_CONFIG)
    add_config(parser)
    given = vars(parser.parse_args(list(arguments)))
    if file := given.pop("config"):
        flags = config_file.read(file, given)
        given = vars(parser.parse_args([*flags, *arguments]))
        given.pop("config")
    if "seed" in given and "seeds" in given:
        seeds = as_flag(given["seeds"])
        parser.error(f"--seed={given['seed']} and --seeds={seeds} together: give one")
    return _with_recipe(given)


def _with_recipe(given: dict[str, Any]) -> RunConfig:
    """The configuration of some flags, for the others by the recipe.

    Without that flag it is the recipe of the work in the run's folder, as recorded there, else the
    dataset's.
    """
    config, told = RunConfig().replace(**given), given.get("recipe")
    for name, value in look_up(config.model.method).options.items():
        if given.get(name, value) != value:
            raise ValueError(
                f"--{name}={as_flag(given[name])}: {config.model.method} always has "
                f"{as_flag(value)}; leave the flag out, or choose another --method"
            )
    folders = (RunFolder(each.folder()) for each in config.by_seed())
    began = next((folder for folder in folders if folder.has_work()), None)
    values = (began.fact("recipe") or {}) if began else {}
    recorded = ("modern" if values else "paper") if began else default_recipe(config.data.dataset)
    stored = began.fact("configuration") if began else None
    as_long = isinstance(stored, dict) and stored.get("epochs") == config.epochs()
    if not as_long or told not in (None, recorded):  # another training has a schedule of its own
        recorded = told or recorded
        batch_size = given.get("batch_size")
        values = training_recipe(recorded, config.epochs(), batch_size)._asdict()
    if values and given.get("optimizer", values["optimizer"]) != values["optimizer"]:
        # Another optimizer's rate and decay would be out of all proportion.
        of_its_own = ("learning_rate", "momentum", "weight_decay")
        values = {name: value for name, value in values.items() if name not in of_its_own}
    return RunConfig().replace(**{**values, **given, "recipe": recorded})
