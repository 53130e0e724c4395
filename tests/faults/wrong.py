"""Wrong inputs and damaged files, as a table: flags by bad values, files by kinds of damage."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.cli.conftest import SMALL

RUNS = Path(__file__).parent.parent / "cli" / "runs"
RUN = Path("fashion_mini/S3/seed0")


class Wrong(NamedTuple):
    """A command that must fail.

    `names` is what its one line must contain, in any of the spellings; `damage` prepares the
    folder that the command runs in.
    """

    command: str
    arguments: list[str]
    names: tuple[str, ...]
    damage: Callable[[], Any] = lambda: None


JUNK = ["", " ", "x", "é½", "\x1b[2J", "a\nb", "--", "nan", "-1", "a" * 5000]
WHOLE = [*JUNK, "inf", "1.5", "9" * 30, "1e3", "0x10", "1,2", "9" * 5000]
REAL = [*JUNK, "inf", "-inf", "1e400", "1,5"]
LISTS = ["", ",", "x", "1,,2", "nan", "1,1", "-1", "9" * 30, "\x1b[2J", "1;2"]
NO_NETWORK = ["nosuch:net", "os:nosuch", "json:loads", "jax", ":", "a:b:c", "os:getcwd"]
NO_NAME = [name for name in JUNK if name != "nan"]
NO_DATASET = ["folder:", "folder:nosuch", "folder:empty", "/absolute", "../up", "a\\b"]
NO_DATASET += ["cifar10:9.9.9", "eurosat/nosuch"]
NO_FOLDER = ["file", "file/below", "loop", "n" * 300, "/proc/nothing", "/dev/null"]

FLAGS: dict[str, dict[str, list[str]]] = {
    "run": {
        **dict.fromkeys(("seed", "epochs", "batch_size", "train_size", "image_size"), WHOLE),
        **dict.fromkeys(("depth", "processes", "process"), WHOLE),
        **dict.fromkeys(("width", "learning_rate", "momentum", "weight_decay"), REAL),
        **dict.fromkeys(("drop_after", "warmup_epochs", "auxiliary_mean", "distillation"), REAL),
        "checkpoint_minutes": REAL,
        **dict.fromkeys(("method", "downsample", "layout", "dtype", "fusion"), JUNK),
        **dict.fromkeys(("fusion_start", "fully_connected", "pool", "frozen", "schedule"), JUNK),
        **dict.fromkeys(("optimizer", "normalize", "augment", "resize", "nosuch"), JUNK),
        **dict.fromkeys(("taps", "seeds"), LISTS),
        "initial_weights": LISTS[:5] + LISTS[6:],
        "backbone": [*JUNK, *NO_NETWORK],
        "dataset": [*NO_NAME, *NO_DATASET, "folder:file", "~/home", "nosuch/config", "cifar10/"],
        "pretrained": ["", "nosuch", "empty", "file", "\x1b[2J", "/dev/null", "n" * 300],
        "coordinator": ["", "x", "1.2.3.4", "1.2.3.4:5"],
        "out": NO_FOLDER,
    },
    "predict": {
        "run": [*JUNK, *NO_FOLDER, "empty"],
        "images": ["", "nosuch", "empty", "file", "loop", "\x1b[2J", "n" * 300, "/dev/null"],
        "dataset": ["nosuch", "folder:nosuch", "cifar11", "/absolute", "\x1b[2J", "folder:two"],
        "out": ["file/below", "loop", "n" * 300, "/proc/nothing", "empty", ""],
        "backbone": ["x:y"],
        "nosuch": ["1"],
    },
    "exits": {
        "run": [*JUNK, *NO_FOLDER, "empty"],
        "baselines": ["", "nosuch", "a,b", "\x1b[2J"],
        "budgets": [*LISTS, "0", "2", "1e9"],
        "points": [*LISTS[:5], *LISTS[6:], "-1", "101", "inf"],
        "held_out": [*WHOLE[:10], "1.5", "0", "1"],
        "timed": [*WHOLE[:10], "1.5", "0", "1"],
    },
    "explore": {
        "run": [*JUNK, *NO_FOLDER, "empty"],
        "pictures": [*WHOLE, "0", "101"],
        "held_out": [*WHOLE[:10], "1.5", "0", "1"],
        "out": ["file/below", "loop", "n" * 300, "/proc/nothing", "empty", ""],
    },
    "export": {
        "run": [*JUNK, *NO_FOLDER, "empty"],
        "out": ["file/below", "loop", "n" * 300, "/proc/nothing", "empty", ""],
        "branches": [*WHOLE[:12], "0", "4", "9" * 30],
        "platforms": ["", "x", "cpu,cpu", "CPU", "\x1b[2J", ","],
        "format": JUNK,
    },
    "prepare": {
        "dataset": [*NO_NAME, *NO_DATASET],
        "data_dir": [""],
    },
    "reproduce": {
        "table": [*JUNK, "1.0", "99"],
        "figure": [*JUNK, "5"],
        "preset": JUNK,
        "datasets": ["", "nosuch", ",", "cifar10,cifar10", "\x1b[2J"],
        "seeds": LISTS,
        "depths": [*LISTS, "3", "1000"],
        "methods": ["", "S77", "S1,S1", "\x1b[2J"],
        "learning_rates": [*LISTS, "-1", "inf"],
        "epochs": WHOLE[:13],
        "width": REAL[:12],
        "batch_size": ["0", "-1", "x"],
        "workers": ["", "0", "-1", "x", "9" * 30, "\x1b[2J", "1.5", "999"],
        "cpus": ["0", "x", "4"],
        "runs_per_gpu": ["0", "x", "4"],
        "out": NO_FOLDER,
    },
}
IN_PLACE_OF = {"images": ("dataset",), "figure": ("table",)}  # other flags that a flag replaces
NEEDED = {
    "run": [*SMALL, "--out=new"],
    "predict": [f"--run={RUN}", "--dataset=fashion_mini", "--out=new/a.csv"],
    "exits": [f"--run={RUN}"],
    "explore": [f"--run={RUN}"],
    "export": [f"--run={RUN}", "--out=new/a.bin"],
    "prepare": ["--dataset=svhn", "--data_dir=new"],
    "reproduce": ["--table=3", "--preset=quick", "--out=new"],
}


def by_flag() -> Iterator[Wrong]:
    """Every flag with every bad value, in place of what the command needs."""
    for command, flags in FLAGS.items():
        for name, values in flags.items():
            replaced = tuple(f"--{each}=" for each in (name, *IN_PLACE_OF.get(name, ())))
            others = [each for each in NEEDED[command] if not each.startswith(replaced)]
            for value in values:
                given = ["--images", value] if name == "images" else [f"--{name}={value}"]
                named = name.rstrip("s"), shown(value)
                yield Wrong(command, [*others, *given], named, prepare_places)


def shown(text: str) -> str:
    """A part of a value by which a message names it."""
    text = text.removeprefix("folder:").split(",")[0]
    return text.encode("unicode_escape").decode()[:20] or "''"


NETWORK = "--backbone=experiments.tables.backbones:ResNet"
TAPPED = f"{NETWORK} --backbone_options=width=2 --taps=stem,stage1_block1"
COMBINATIONS = [
    ("run", NETWORK, "needs --taps; --list_layers"),
    ("run", f"{NETWORK} --taps=third --method=S1", "no layer 'third'; the closest are "),
    ("run", f"{NETWORK} --taps=7,9 --method=S1", "no layer '7'; the closest are "),
    ("run", f"{NETWORK}s --taps=stem --method=S1", "no function 'ResNets'; the closest are ResNet"),
    ("run", f"{NETWORK} --backbone_options=depth=3 --taps=stem", "with the options 'depth=3'"),
    ("run", f"{TAPPED} --method=S1 --width=0.5", "--width=0.5 is for --backbone=vgg"),
    ("run", f"{TAPPED} --method=S2", "4 branch weights, but there are 2 taps"),
    ("run", f"{TAPPED} --method=S2 --initial_weights=1,2,3", "3.0), but there are 2 taps"),
    ("run", f"{TAPPED} --method=S1 --pretrained=absent.msgpack", "absent.msgpack cannot be read"),
    ("run", f"{TAPPED} --method=S1 --normalize=imagenet", "of 3 channels, and the images have 1"),
    ("run", "--taps=first", "vgg has convolutions"),
    ("run", "--schedule=cosine --drop_after=0.5", "drop_after"),
    ("run", "--list_layers --depth=3", "depth"),
    ("run", "--list_layers --dataset=nosuch", "nosuch"),
    ("run", "--list_layers --width=-1", "width"),
    ("run", "--list_layers --backbone=nosuch:net", "nosuch"),
    ("run", "--data_dir= --dataset=svhn", "data_dir"),
    ("run", "--dataset=cifar10:9.9.9 --data_dir=new", "cifar10"),
    ("run", "--seed=1 --seeds=1,2", "seeds"),
    ("run", "--backbone_options=a=1", "is for another --backbone"),
    ("run", "--backbone=json:loads --taps=a", "json:loads"),
    ("run", "--backbone=jax_resnet:ResNet18", "taps"),
    ("run", "--backbone=os:getcwd --taps=a --depth=5", "depth"),
    ("run", "--train_size=10", "batch_size"),
    ("run", "--train_size=7000", "train_size"),
    ("run", "--image_size=64", "image_size"),
    ("run", "--depth=5 --taps=3,4,6", "taps"),
    ("run", "--method=S7 --depth=5", "taps"),
    ("run", "--method=Normal --initial_weights=1,2", "initial_weights"),
    ("run", "--initial_weights=1,2", "initial_weights"),
    ("run", "--optimizer=adamw --momentum=0.9", "momentum"),
    ("run", "--processes=2", "coordinator"),
    ("run", "--processes=2 --coordinator=1.2.3.4:5", "process"),
    ("run", "--processes=2 --coordinator=1.2.3.4:5 --process=2", "process"),
    ("run", "--process=0", "process"),
    ("run", "stray", "stray"),
    ("run", "--epochs", "epochs"),
    ("predict", f"--run={RUN}", "--dataset"),
    ("predict", f"--run={RUN} --dataset=fashion_mini a.png", "--dataset"),
    ("predict", "--dataset=fashion_mini", "--run"),
    ("predict", f"--run={RUN} --dataset=svhn --data_dir=", "data_dir"),
    ("exits", "", "--run"),
    ("exits", f"--run={RUN} --baselines={RUN}/nosuch", "nosuch"),
    ("export", f"--run={RUN}", "--out"),
    ("export", f"--run={RUN} --out=a --format=safetensors --platforms=cpu", "platforms"),
    ("export", f"--run={RUN} --out=a --refit", "branches"),
    ("prepare", "", "--dataset"),
    ("prepare", "--dataset=fashion_mnist:0.0.1 --data_dir=new", "fashion_mnist"),
    ("reproduce", "", "--table"),
    ("reproduce", "--table=3 --figure=4", "--table"),
    ("reproduce", "--table=3 --report --out=new", "new"),
    ("reproduce", "--table=3 --methods=Nosuch --dry_run", "Nosuch"),
    ("reproduce", "--table=1 --methods=S1 --dry_run", "taps"),
    ("reproduce", "--table=3 --depths=40 --dry_run", "taps"),
    ("reproduce", "--table=3 --workers=99 --datasets=fashion_mini --out=new", "workers"),
    ("reproduce", "--table=3 --schedule=cosine --drop_after=0.5 --out=new", "drop_after"),
    ("reproduce", "--table=3 --backbone=nosuch:net --out=new", "nosuch"),
]


def by_combination() -> Iterator[Wrong]:
    """What makes no sense together, or is missing."""
    for command, line, name in COMBINATIONS:
        needed = [] if command != "run" else ["--out=new"]
        yield Wrong(command, [*needed, *line.split()], (name,), prepare_places)


def prepare_places() -> None:
    """A finished run and places of every kind, in the folder where a command runs."""
    shutil.copytree(RUNS / "finished", ".", dirs_exist_ok=True)
    Path("file").write_text("text")
    Path("empty").mkdir()
    Path("loop").symlink_to("loop")
    pictures("two", "train/a", "train/b", "test/a", "test/b")


def pictures(root: str, *folders: str, size: tuple[int, int] = (8, 8)) -> None:
    for folder in folders:
        (Path(root) / folder).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", size, (number, 0, 0)).save(Path(root) / folder / f"{number}.png")


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "string": b'"x"',
    "null": b"null",
    "no entries": b"{}",
    "open": b'{"a": ',
    "deep": b"[" * 100_000,
    "deep objects": b'{"configuration":' * 50_000,
    "binary": bytes(range(256)) * 9,
    "utf-16": "{}".encode("utf-16"),
    "long number": b'{"epochs": ' + b"9" * 5000 + b"}",
    "controls": b'{"\x1b[2J": 1}',
}


def overwrite(file: Path, content: bytes | None) -> None:
    file.unlink()
    if content is not None:
        file.write_bytes(content)


def write(file: str, content: bytes) -> None:
    Path(file).write_bytes(content)


def altered(file: Path, *keys: str, key: str = "", value: Any = ...) -> None:
    """Sets an entry of a JSON file; without a value deletes it."""
    keys = keys or (key,)
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner.pop(keys[-1]) if value is ... else inner.update({keys[-1]: value})
    file.write_text(json.dumps(content))


def on(
    kind: str,
    change: Callable[..., Any],
    file: str,
    *arguments: Any,
    root: Path = Path(),
    **options: Any,
) -> Any:
    """Copies a run folder below a root, and changes a file of it."""

    def damage() -> None:
        shutil.copytree(RUNS / kind, root, dirs_exist_ok=True)
        change(root / RUN / file, *arguments, **options)

    return damage


def half(file: Path) -> None:
    overwrite(file, file.read_bytes()[: file.stat().st_size // 2])


AGAIN = [*SMALL, "--out=."]  # the command of the runs that are damaged
OPEN = {command: NEEDED[command] for command in ("predict", "exits", "export")}


def by_text() -> Iterator[Wrong]:
    """result.json of a finished run and config.json of a stopped one, each in every way."""
    for command, arguments in {**OPEN, "run": AGAIN}.items():
        for name, content in TEXTS.items():
            if (name, command) != ("no entries", "run"):
                damage = on("finished", overwrite, "result.json", content)
                yield Wrong(command, arguments, ("result.json",), damage)
        yield Wrong(command, arguments, ("result.json",), on("finished", half, "result.json"))
    for content in (*TEXTS.values(), None):
        damage = on("stopped", overwrite, "config.json", content)
        yield Wrong("run", AGAIN, ("config.json",), damage)


ENTRIES = {
    "class_names": (..., None, 3, [], ["a"], [1, 2]),
    "image_shape": (..., None, 3, [], [28], "28", [28, 28, 3], [-1, 28, 1], [10**9, 10**9, 1]),
    "mean": (..., None, "x", [], ["a"], [[0.1]], [0.1, 0.2, 0.3]),
    "deviation": (..., None, "x", [], ["a"], [0.0]),
    "branches": (..., None, 3, [], [1, 2]),
    "method": (..., 3, "S99", [], None),
    "fingerprint": (..., None, "x", 3),
    "command": (...,),
    "depth": ("x", 3, None, 1e9, [5]),
    "width": ("x", -1, None, 1e9),
    "resize": ("x", 3, []),
    "taps": ("x", 3, [99], [[]], {}),
    "dtype": ("x", 3, "float64", []),
    "fusion": ("x", 3, []),
    "backbone": ("subprocess:getoutput", 3, None, [], "\x1b[2J"),
}


CONFIGURED = {
    ("configuration",): (..., None, [], 3, "x"),
    ("statistics",): (3, "x", {"mean": 1}),
    ("configuration", "seed"): ("x",),
    ("configuration", "depth"): ([],),
    ("configuration", "taps"): ({},),
    ("configuration", "width"): (None,),
    ("configuration", "dtype"): (3,),
    ("data",): ("other", 3, []),
}


def by_entry() -> Iterator[Wrong]:
    """Entries of result.json and config.json that are missing, or of another type or shape."""
    for key, values in ENTRIES.items():
        for number, value in enumerate(values):
            command = ("predict", "export")[number % 2]
            damage = on("finished", altered, "result.json", key, value=value)
            yield Wrong(command, OPEN[command], ("result.json", str(RUN)), damage)
    for keys, values in CONFIGURED.items():
        named = "config.json" if keys in (("configuration",), ("statistics",)) else str(RUN)
        for value in values:
            damage = on("stopped", altered, "config.json", *keys, value=value)
            yield Wrong("run", AGAIN, (named,), damage)


def by_checkpoint() -> Iterator[Wrong]:
    """Every file of a run's only checkpoint, cut, emptied, overwritten, missing, swapped."""
    root = RUNS / "finished" / RUN
    whole = [
        str(file.relative_to(root))
        for file in sorted((root / "checkpoints").rglob("*"))
        if file.is_file() and file.name != "commit_success.txt"
    ]
    for file in whole:
        digests = file.endswith("sha256.json")
        contents = (b"[]", b"3", b"") if digests else (b"", b"\0" * 999, None)
        for damage in (
            on("finished", half, file),
            *(on("finished", overwrite, file, content) for content in contents),
        ):
            yield Wrong("predict", OPEN["predict"], ("checkpoints",), damage)

    def swapped(folder: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(RUNS / "stopped" / RUN / "checkpoints", folder)

    def a_file(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.write_text("x")

    def emptied(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    for change in (shutil.rmtree, swapped, a_file, emptied):
        for command, arguments in OPEN.items():
            yield Wrong(command, arguments, ("checkpoints",), on("finished", change, "checkpoints"))
    for file in whole[1:4]:
        of_stopped = file.replace("10", "5")
        if (RUNS / "stopped" / RUN / of_stopped).exists():
            damage = on("stopped", overwrite, of_stopped, b"")
            yield Wrong("run", AGAIN, ("checkpoints",), damage)
    yield Wrong("run", AGAIN, ("checkpoints",), on("stopped", a_file, "checkpoints"))


TABLES = [
    *(b"epoch\nx\n", b"a,b\n1,2\n", b"epoch,test_accuracy\n1\n", b"epoch\n1,2,3\n", b"\0\n1\n"),
    *(bytes(range(128, 256)), b'"' * 99, b"epoch,test_accuracy\n1.5,2\n", b"epoch\n1\n"),
    *(b"x" * 200_000 + b"\n1\n", b"[]\n[]\n", "épöch\n1\n".encode("utf-16")),
]


def by_record() -> Iterator[Wrong]:
    """OUT/runs.jsonl, and result.json and metrics.csv of runs below OUT/runs."""
    arguments = ["--table=3", "--datasets=fashion_mini", "--out=.", "--report"]
    for content in TEXTS.values():
        if content and content != b"null":
            damage = partial(write, "runs.jsonl", content)
            yield Wrong("reproduce", arguments, ("runs.jsonl",), damage)
    changes = [("result.json", partial(overwrite, content=content)) for content in TEXTS.values()]
    changes += [("metrics.csv", partial(overwrite, content=content)) for content in TABLES]
    changes += [
        ("result.json", partial(altered, key=key, value=value))
        for key in ("test_accuracy", "branches", "weights", "versions", "device", "dataset")
        for value in (3, "x", [], None)
        if (key, value) not in (("test_accuracy", 3), ("device", "x"), ("dataset", "x"))
    ]
    for file, change in changes:
        damage = on("finished", change, file, root=Path("runs/paper"))
        yield Wrong("reproduce", arguments, (file, str(RUN)), damage)


def by_pretrained() -> Iterator[Wrong]:
    """Files of parameters that are none, or another network's."""
    header = json.dumps(
        {"params/conv1/kernel": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    )
    whole, odd = (
        len(text).to_bytes(8, "little") + text.encode() + bytes(8)
        for text in (header, header.replace("F32", "Q7"))
    )
    contents = {
        **TEXTS,
        "cut": whole[:-3],
        "another": whole,
        "long": (2**60).to_bytes(8, "little") + b"{",
        "odd": odd,
        "msgpack": b"\x81\xa1a\x93\x01\x02\x03",
        "cut msgpack": b"\x82\xa1a",
    }
    for name, content in contents.items():
        file = f"{name}.safetensors"
        given = [*SMALL, "--out=new", f"--pretrained={file}"]
        yield Wrong("run", given, (file, "pretrained"), partial(write, file, content))


NO_PICTURES = {
    **TEXTS,
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "png head": b"\x89PNG\r\n\x1a\n",
    "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x00\x01\xff\xff\x00\x01\xff\xff\x08\x02\0\0\0",
    "gif": b"GIF89a\0\0\0\0\0\0\0",
}
NO_LAYOUTS: list[tuple[str, ...]] = [
    *((), ("train",), ("train/a", "test/a"), ("train/a", "train/b", "test/c")),
    *(("test/a", "test/b"), ("train/.a", "train/__MACOSX"), ("train/a", "test/a", "test/b")),
]


def by_picture() -> Iterator[Wrong]:
    """Image files that are none, and folders of them that are no dataset."""

    def beside_a_run(file: str, content: bytes) -> None:
        shutil.copytree(RUNS / "finished", ".", dirs_exist_ok=True)
        write(file, content)

    def in_a_dataset(file: str, content: bytes) -> None:
        pictures("pics", "train/a", "train/b", "test/a", "test/b")
        write(f"pics/train/a/{file}", content)

    train = ["--method=Normal", "--epochs=1", "--batch_size=2", "--out=new"]
    train += ["--dataset=folder:pics", "--depth=4", "--width=0.0625", "--image_size=8"]
    for name, content in NO_PICTURES.items():
        file = f"{name}.png"
        given = [f"--run={RUN}", file, "--out=new/a"]
        yield Wrong("predict", given, (file,), partial(beside_a_run, file, content))
        yield Wrong("run", train, ("pics", file), partial(in_a_dataset, file, content))

    noise = io.BytesIO()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(noise, "PNG")
    cut = partial(beside_a_run, "whole.png", noise.getvalue()[: len(noise.getvalue()) // 2])
    yield Wrong("predict", [f"--run={RUN}", "whole.png"], ("whole.png",), cut)

    def layout(folders: tuple[str, ...]) -> None:
        Path("pics").mkdir()
        pictures("pics", *folders)

    for folders in NO_LAYOUTS:
        for command, given in {"run": ["--out=new"], "prepare": []}.items():
            given = [*given, "--dataset=folder:pics"]
            yield Wrong(command, given, ("pics",), partial(layout, folders))


def by_tfds() -> Iterator[Wrong]:
    """Folders that tfds might have prepared, damaged."""

    def damage(file: str, content: bytes | None) -> None:
        folder = Path("data/fashion_mnist/3.0.1")
        folder.mkdir(parents=True)
        for name, text in PREPARED.items():
            (folder / name).write_text(json.dumps(text))
        overwrite(folder / file, content)

    damages = [(file, content) for file in PREPARED for content in (*TEXTS.values(), None)]
    damages.remove(("dataset_info.json", None))
    for file, content in damages:
        for command, given in {"run": ["--out=new"], "prepare": []}.items():
            given = ["--dataset=fashion_mnist", "--data_dir=data", *given]
            yield Wrong(command, given, ("fashion_mnist",), partial(damage, file, content))


PREPARED: dict[str, Any] = {  # the descriptions of a prepared dataset, without its examples
    "dataset_info.json": {
        "name": "fashion_mnist",
        "version": "3.0.1",
        "fileFormat": "array_record",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": "train",
                "numBytes": "9",
                "shardLengths": ["3"],
            }
        ],
    },
    "features.json": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {}},
    },
}


KINDS: dict[str, Callable[[], Iterator[Wrong]]] = {
    "flags": by_flag,
    "combinations": by_combination,
    "texts": by_text,
    "entries": by_entry,
    "checkpoints": by_checkpoint,
    "records": by_record,
    "pretrained": by_pretrained,
    "pictures": by_picture,
    "tfds": by_tfds,
}
