"""A run's configuration from a file: TOML, or the config.json of a run."""

import difflib
import json
import tomllib
from collections.abc import Container
from pathlib import Path
from typing import Any

from interflow_jax.cli.config import PARTS, fields, flag, recorded
from interflow_jax.config import VGG
from interflow_jax.methods import look_up


def read(file: str, given: Container[str]) -> list[str]:
    """The flags that a file stands for.

    TOML has the flags' names, at the top or in tables that are named as the parts of `RunConfig`.
    Flags that are `given` beside it win.

    Raises:
      ValueError: for a file that is neither, a name that is no flag, or a network of one's own,
        which no file has imported: the command line must name it, too.
    """
    try:
        text = Path(file).expanduser().read_text()
        is_json = text.lstrip().startswith("{")
        values: dict[str, Any] = json.loads(text) if is_json else tomllib.loads(text)
        if is_json:
            values = values.get("configuration", {})
            if not isinstance(values, dict) or "method" not in values:
                raise ValueError("it has no configuration, as a run's config.json")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--config={file} cannot be read: {error}") from error
    for part in () if is_json else PARTS:
        if isinstance(values.get(part), dict):
            _move_up(file, values, part)
    network = values.get("backbone", VGG)
    if network != VGG and "backbone" not in given:
        raise ValueError(
            f"--config={file} names the network {network}, which is not imported at a file's "
            f"word; add --backbone={network}"
        )
    return _of_run(file, values, given) if is_json else _of_toml(file, values, given)


def _of_run(file: str, record: Any, given: Container[str]) -> list[str]:
    """The flags of a run; without taps and options that are its method's, not another one's."""
    try:
        config = recorded(record)
        decided = look_up(config.model.method).options
        config = config.replace(**{name: getattr(type(config.model), name) for name in decided})
        if (plain := config.replace(taps=None)).model.resolved_taps() == config.model.taps:
            config = plain
        values, decided = config.flat(), config.decided()
        # What the recipe decides, it decides anew for flags such as --epochs that are given beside.
        by_recipe = {flag(name, x) for name, x in decided.items() if values[name] == x}
        flags = [each for each in config.arguments() if each not in by_recipe]
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--config={file} is not a run's ({error})") from error
    return [each for each in flags if not (each.startswith("--seed=") and "seeds" in given)]


def _move_up(file: str, values: dict[str, Any], part: str) -> None:
    """Moves a table's entries to the top; raises ValueError where another says them, too."""
    table = values.pop(part)
    for name in table:
        owner = next((each for each in PARTS if name in fields(each)), part)
        if owner != part:
            raise ValueError(f"--config={file} has {name} in [{part}]; it is of [{owner}]")
        if name in values:
            raise ValueError(f"--config={file} has {name} twice: at the top, and in [{part}]")
    values |= table


def _of_toml(file: str, values: dict[str, Any], given: Container[str]) -> list[str]:
    known = sorted(["fc", *(name for part in PARTS for name in fields(part))])
    flags = []
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(
                f"--config={file} has {name!r}, which is no flag{meant} Choose from "
                f"{', '.join(known)}"
            )
        if {"seed": "seeds", "seeds": "seed"}.get(name, name) in given:  # the flag wins
            continue
        if isinstance(value, list):
            value = tuple(value)
        if value is not False or name not in ("detached", "list_layers"):
            flags.append(flag(name, value))
    return flags
