"""Which files in a folder of folders are pictures, of which class, to train on or to test on."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from interflow_jax.data.dataset import printable

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_HELD_OUT = 10  # without a test folder, every tenth picture of a class is for testing
_TRAIN_FOLDERS = ("train", "training")  # in any case
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")  # the first that has classes
_NAMED = 5  # names in a sentence

Files = dict[str, list[Path]]
"""Pictures by class, in order."""

Unread = defaultdict[Path, list[Path]]
"""What in a folder is not read: files that are no pictures, and links to folders."""


class Listing(NamedTuple):
    """The pictures in a folder (see `folders.from_folder`), and notes on what is not read."""

    train: Files
    test: Files
    test_name: str
    notes: list[str]


def list_pictures(root: Path) -> Listing:
    """Lists a folder; raises ValueError where no dataset can be made of it."""
    unread: Unread = defaultdict(list)
    folders, files = _visible(root)
    parts: dict[str, Path] = {}
    for folder in folders:
        if (name := folder.name.lower()) in (*_TRAIN_FOLDERS, *_TEST_FOLDERS):
            name = "train" if name in _TRAIN_FOLDERS else name
            if name in parts:
                raise ValueError(f"{root} has {parts[name].name} and {folder.name}; keep one")
            parts[name] = folder
    train = parts.get("train")
    for_testing = [parts[name] for name in _TEST_FOLDERS if name in parts]
    held_out = next((folder for folder in for_testing if _visible(folder)[0]), None)
    notes = []
    if train and (held_out or len(folders) == 1 or _holds_folders_alone(train)):
        unread[root] += files
        if others := [place.name for place in folders if place not in (train, held_out)]:
            notes.append(f"beside {train.name}, folders that are not read: {some(others)}")
        in_train = _classes(train, unread)
    else:
        if train:
            notes.append(f"{train.name} holds pictures itself, and is taken for a class")
        notes += _as_classes(root, folders, [] if train else for_testing)
        held_out, in_train = None, _classes(root, unread)
    if held_out:
        listing = Listing(in_train, _classes(held_out, unread), held_out.name, notes)
    else:
        listing = _hold_out(in_train, notes)
    notes += not_read(unread, root)
    _check(root, listing)
    if untested := [name for name in listing.train if not listing.test.get(name)]:
        notes.append(f"classes without test pictures: {some(untested)}")
    capitals = Counter(name.casefold() for name in listing.train)
    if alike := [name for name in listing.train if capitals[name.casefold()] > 1]:
        notes.append(f"classes that differ in capitals alone: {some(alike)}")
    return listing


def _as_classes(root: Path, folders: list[Path], for_testing: list[Path]) -> list[str]:
    """Notes on folders that are taken for classes; ValueError for one of test pictures."""
    inside = {folder: {below.name for below in _visible(folder)[0]} for folder in folders}
    for folder in for_testing:
        if inside[folder] & {other.name for other in folders}:
            raise ValueError(
                f"{root} has a folder {folder.name} of the same classes, but none called train: "
                "put those to train on into it"
            )
    notes = [f"{folder.name} is taken for a class" for folder in for_testing]
    below = next(iter(inside.values()), set())
    alike = len(folders) > 1 and below and all(names == below for names in inside.values())
    if alike and not any(_is_picture(file) for folder in folders for file in _visible(folder)[1]):
        upper = some([folder.name for folder in folders])
        notes.append(f"{upper} are the classes, each with {some(sorted(below))} inside")
    return notes


def is_for_testing(path: Path) -> bool:
    """Whether a path, from the folder of a dataset on, leads into its folder of test pictures."""
    return path.parts[0].lower() in _TEST_FOLDERS


def _hold_out(files: Files, notes: list[str]) -> Listing:
    test_name = f"every {_HELD_OUT}th picture of a class"
    test = {name: pictures[_HELD_OUT - 1 :: _HELD_OUT] for name, pictures in files.items()}
    if not any(test.values()):
        test_name = "the last picture of a class"
        test = {name: pictures[1:][-1:] for name, pictures in files.items()}
    train = {name: sorted({*pictures} - {*test[name]}) for name, pictures in files.items()}
    return Listing(train, test, test_name, notes)


def _check(root: Path, listing: Listing) -> None:
    train, test = listing.train, listing.test
    if len(train) < 2:
        has = f"one class, {some([*train])}" if train else "no folders of pictures"
        raise ValueError(f"{root} has {has}; give two or more classes, a folder of pictures each")
    if empty := [name for name, files in train.items() if not files]:
        raise ValueError(
            f"{root} has no pictures ({', '.join(ENDINGS)}) to train on in the class "
            + "; ".join([some(empty), *listing.notes])
        )
    if unknown := sorted(set(test) - set(train)):
        raise ValueError(
            f"{root} has in {listing.test_name} the class {some(unknown)}, which train lacks"
        )
    if not any(test.values()):
        raise ValueError(
            f"{root} has no pictures to test on; "
            + "; ".join(["give each class two or more, or a folder test", *listing.notes])
        )


def _classes(folder: Path, unread: Unread) -> Files:
    """The pictures in every folder of a folder, and below."""
    folders, files = _visible(folder)
    unread[folder] += files
    return {place.name: sorted(pictures_below(place, unread[place])) for place in folders}


def pictures_below(folder: Path, unread: list[Path]) -> list[Path]:
    """The pictures in a folder and below; what is not read is added to a list."""
    folders, files = _visible(folder)
    links = [below for below in folders if below.is_symlink()]  # they may lead in a circle
    unread += [*links, *(file for file in files if not _is_picture(file))]
    pictures = [file for file in files if _is_picture(file)]
    for below in folders:
        pictures += pictures_below(below, unread) if below not in links else ()
    return pictures


def not_read(unread: Unread, root: Path | None = None) -> list[str]:
    """As "30 files in cat are not read (.svg)", relative to a root; of all where they are many."""
    endings = {
        _name(folder, root): Counter(place.suffix.lower() or "no ending" for place in places)
        for folder, places in unread.items()
        if places
    }
    if len(endings) > _NAMED:
        endings = {f"{len(endings)} folders": sum(endings.values(), Counter())}
    return [
        f"{kinds.total()} file{'s' * (kinds.total() > 1)} in {printable(name)} "
        f"{'are' if kinds.total() > 1 else 'is'} not read ({some(sorted(kinds))})"
        for name, kinds in endings.items()
    ]


def _name(folder: Path, root: Path | None) -> str:
    if root is None:
        return str(folder)
    return root.name if folder == root else str(folder.relative_to(root))


def _visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder, by name, without hidden ones and those that macOS leaves."""
    folders: list[Path] = []
    files: list[Path] = []
    for place in sorted(folder.iterdir()):
        if not place.name.startswith(".") and place.name != "__MACOSX":
            (folders if place.is_dir() else files).append(place)
    return folders, files


def _holds_folders_alone(folder: Path) -> bool:
    folders, files = _visible(folder)
    return bool(folders) and not any(map(_is_picture, files))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def some(names: Sequence[str]) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more
