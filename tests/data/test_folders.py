"""Datasets of pictures in folders, as people have them."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from interflow_jax.data import recipes
from interflow_jax.data.splits import UnreadableExamplesError, read

TENTH = "every 10th picture of a class"


def picture(file, level=0, size=(6, 5), mode="L", **options):
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(file, **options)


def plant(root, tree):
    """Makes folders, "NAME*COUNT.ENDING" with 10 PNGs by default, of grey levels of their own."""
    places = re.findall(r"([^*\s]+)(?:\*(\d+)(?:\.(\w+))?)?", tree)
    for label, (name, count, ending) in enumerate(places):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(int(count or 10)):
            file = root / name / f"{number:02}.{ending or 'png'}"
            if ending in ("svg", "txt"):
                file.touch()
            else:
                picture(file, 50 * (label % 5) + number, format={"jfif": "JPEG"}.get(ending))


@pytest.fixture
def root(tmp_path):
    plant(tmp_path, "train/cat*3 train/dog*3 test/cat*1 test/dog*1")
    return tmp_path


def test_folders_are_classes(root, monkeypatch):
    dataset = recipes.load(f"folder:{root}")
    assert (dataset.name, dataset.test_name, dataset.notes) == (f"folder:{root}", "test", ())
    assert (dataset.class_names, dataset.image_shape) == (("cat", "dog"), (5, 6, 1))
    images, labels = dataset.train.read(np.array([5, 0, 2]))
    assert images[:, 0, 0, 0].tolist() == [52, 0, 2]
    assert labels.tolist() == [1, 0, 0]
    assert "6 training and 2 test images of (5, 6, 1), 2 classes" in repr(dataset)
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(ij.data.from_folder(f"~/{root.name}").train) == 6


@pytest.mark.parametrize(
    ("tree", "train", "test", "test_name", "notes"),
    [
        ("train/a train/b val/a val/b", 20, 20, "val", []),
        ("Train/a Train/b VALIDATION/a VALIDATION/b", 20, 20, "VALIDATION", []),
        ("train/a train/b train*1", 18, 2, TENTH, ["1 file in train is not read (.png)"]),
        ("a*20 b*20.JPG", 36, 4, TENTH, []),
        ("a a/more b/far/below", 27, 3, TENTH, []),
        ("a b __MACOSX/a .hidden a/.hidden", 18, 2, TENTH, []),
        ("a*10.webp a*9.bmp a*9.gif b*9.tif b*9.TIFF b*9.jfif b*9.jpeg", 59, 5, TENTH, []),
        ("a*3 b*3", 4, 2, "the last picture of a class", []),
        ("Training/a Training/b Testing/a Testing/b", 20, 20, "Testing", []),
        (
            "train/a train/b valid/a valid/b test*5",
            *(20, 20, "valid"),
            ["beside train, folders that are not read: test"],
        ),
        ("test control", 18, 2, TENTH, ["test is taken for a class"]),
        ("a A", 18, 2, TENTH, ["classes that differ in capitals alone: A, a"]),
        (
            "images/a images/b masks/a*5 masks/b*5",
            *(27, 3, TENTH, ["images, masks are the classes, each with a, b inside"]),
        ),
        ("a b*9", 18, 1, TENTH, ["classes without test pictures: b"]),
        ("train bus", 18, 2, TENTH, ["train holds pictures itself, and is taken for a class"]),
        (
            "train/a train/b test/a valid/b more train*1 train/a*30.svg train/b/x*1.txt .*2.txt",
            *(20, 10, "test"),
            [
                "beside train, folders that are not read: more, valid",
                "2 files in ROOT are not read (.txt)",
                "1 file in train is not read (.png)",
                "30 files in train/a are not read (.svg)",
                "1 file in train/b is not read (.txt)",
                "classes without test pictures: b",
            ],
        ),
        (
            " ".join(f"{name} {name}*1.txt {name}*1.svg" for name in "abcdef"),
            *(54, 6, TENTH, ["12 files in 6 folders are not read (.svg, .txt)"]),
        ),
    ],
)
def test_what_is_for_training_and_what_for_testing(tmp_path, tree, train, test, test_name, notes):
    plant(tmp_path / "ROOT", tree)
    dataset = ij.data.from_folder(tmp_path / "ROOT")
    assert (len(dataset.train), len(dataset.test)) == (train, test)
    assert (dataset.test_name, [*dataset.notes]) == (test_name, notes)
    if train == 36:  # the tenth and the twentieth by name
        assert dataset.test.read(np.arange(2))[0][:, 0, 0, 0].tolist() == [9, 19]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (".*1.txt", "has no folders of pictures; give two or more classes"),
        ("a .b", "has one class, a; give two or more classes"),
        ("a*1 b*1", "has no pictures to test on; give each class two or more, or a folder test"),
        ("train/a train/b test/a test/c", "has in test the class c, which train lacks"),
        ("train/a train/b Test/a test/b", "has Test and test; keep one"),
        ("a b test/a test/b", "has a folder test of the same classes, but none called train"),
        ("a b val/a val/b", "has a folder val of the same classes, but none called train"),
        ("a b c*2.svg", r"to train on in the class c; 2 files in c are not read \(\.svg\)"),
    ],
)
def test_folders_that_hold_no_dataset_are_told_why(tmp_path, tree, message):
    plant(tmp_path, tree)
    with pytest.raises(ValueError, match=f"{tmp_path} .*{message}"):
        ij.data.from_folder(tmp_path)


def test_all_that_cannot_be_read_is_named_at_once(root):
    broken = [root / "train" / name / "00.png" for name in ("cat", "dog")]
    for file in broken:
        file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(ValueError, match="2 files cannot be read") as error:
        ij.data.from_folder(root).train.read(np.arange(6))
    assert all(str(file) in str(error.value) for file in broken)


def test_pictures_too_large_to_predict_are_not_trained_on(root):
    for file in root.glob("*/*/*.png"):
        picture(file, size=(5000, 1))
    with pytest.raises(ValueError, match="are 5000x1; give an image_size, of at most 4096"):
        ij.data.from_folder(root)


def test_names_are_shown_without_control_codes_and_links_are_not_entered(root):
    plant(root, "train/c\x1b[2Jow")
    (root / "train" / "dog" / "again").symlink_to(root / "train" / "dog")
    dataset = ij.data.from_folder(root)
    assert (len(dataset.train), dataset.class_names) == (16, (r"c\x1b[2Jow", "cat", "dog"))
    assert dataset.notes == (
        "1 file in train/dog is not read (no ending)",
        r"classes without test pictures: c\x1b[2Jow",
        r"class names with control characters are written as c\x1b[2Jow",
    )


def test_sizes_that_vary_become_32_and_one_colour_colours_all(root):
    picture(root / "train" / "cat" / "large.png", 7, (9, 3), "RGB")
    dataset = ij.data.from_folder(root)
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.notes == ("images: 2 sizes, resized to 32x32 (squashed)",)
    dataset = ij.data.from_folder(root, image_size=8, resize="pad")
    image = dataset.train.read(np.array([3]))[0][0]
    assert image[:, 0, 0].tolist() == [0, 0, 7, 7, 7, 0, 0, 0]
    assert image.shape == dataset.image_shape == (8, 8, 3)
    assert dataset.notes == ("images: 2 sizes, resized to 8x8 (padded)",)


def test_sizes_are_counted_upright_and_transparency_is_no_colour(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("jpg", "tif", "png"):  # lie on their side, and are shown as 6 x 5
        picture(root / "train" / "cat" / f"phone.{ending}", 0, (5, 6), exif=exif)
    picture(root / "train" / "cat" / "7.png", 7, mode="LA")
    assert ij.data.from_folder(root).image_shape == (5, 6, 1)


def test_the_digest_tells_folders_of_one_name_apart(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("other") / "pics"
    shutil.copytree(root, copy)
    cat, dog = copy / "train" / "cat", copy / "train" / "dog"
    digests = [ij.data.from_folder(root).digest()]
    assert re.fullmatch("[0-9a-f]{16}", digests[0])
    assert ij.data.from_folder(copy, 16, "pad").digest() == digests[0]
    for change in (
        lambda: picture(dog / "01.png", size=(60, 50)),
        lambda: (dog / "01.png").rename(dog / "03.png"),
        lambda: (dog / "03.png").rename(cat / "03.png"),
        lambda: (cat / "03.png").unlink(),
        lambda: [(copy / part / "dog").rename(copy / part / "eel") for part in ("train", "test")],
    ):
        change()
        digests.append(ij.data.from_folder(copy).digest())
    assert len(set(digests)) == 6


def test_a_file_that_is_no_picture_of_ours_is_named(root, monkeypatch):
    file = root / "train" / "cat" / "00.png"

    def refused(reason):
        with pytest.raises(ValueError, match=f"{file} cannot be read as an image .*{reason}"):
            ij.data.from_folder(root)

    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UnreadableExamplesError, match=f"{file} cannot be read"):
        read(ij.data.from_folder(root).train, np.array([0]))
    Image.new("I;16", (6, 5), 2**15).save(file)
    refused("more than 8 bits per channel")
    picture(file, format="EPS")
    refused("it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF")
    picture(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    refused(r"Image size \(30")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("/nowhere", {}, "'/nowhere' is no folder"),
        ("~nobody-of-that-name/pics", {}, "is no folder"),
        ("", {}, "'' is no folder"),
        ("", {"resize": "stretch"}, "resize is 'stretch'; choose one of squash, crop, pad"),
        *(("", {"image_size": size}, f"{size}; choose 1 to ") for size in (0, -1, 10**6)),
    ],
)
def test_bad_arguments_are_named(path, options, message):
    for load, argument in ((ij.data.from_folder, path), (recipes.load, f"folder:{path}")):
        with pytest.raises(ValueError, match=message):
            load(argument, **options)
