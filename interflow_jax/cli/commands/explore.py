"""Writes one HTML file to look at a finished run in a browser, without server or network.

interflow explore --run=runs/cifar10/DSN/seed0

The page shows test pictures, with what every depth says of each, the first depth that is right and
the fusion's weights; and a slider for the confidence above which images leave, which moves
accuracy, mean operations, every picture's exit and the confusion, over the whole test split. With
training images that the run has not seen (--train_size), depths predict as interflow exits chose.
"""

import base64
import hashlib
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from interflow_jax.budget import confidence
from interflow_jax.cli import data
from interflow_jax.cli.depths import OWN, SHARES, Depths, Exits, load, unseen
from interflow_jax.cli.files import output_file, write_whole
from interflow_jax.cli.parser import Parser, add_data_dir, add_run
from interflow_jax.data import splits
from interflow_jax.data.dataset import Dataset, printable
from interflow_jax.model import Prediction
from interflow_jax.saved_run import HELD_OUT, TrainedRun, load_run

_MOST_BYTES = 5_000_000
_MOST_ANSWERS = 350_000  # images times depths, at 8 bytes each of the page
_MOST_PICTURES = 100
_SIDE = 96  # pixels that a picture is shown with


def main(arguments: list[str]) -> int:
    """Runs the command."""
    given = _flags(arguments)
    run = load_run(given.run, given.backbone, given.trust_code)
    default = str(Path(given.run, "explore.html"))
    out = output_file(default if given.out is None else given.out)
    dataset = load(run, given.data_dir)
    print(f"predicting {len(dataset.test):,} test images ...", flush=True)
    page = html(_content(run, dataset, given)).encode()
    if len(page) > _MOST_BYTES:
        raise ValueError(f"--pictures={given.pictures} make {len(page):,} bytes: choose fewer")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page)
    print(f"wrote {out}, {len(page) / 1e6:.2f} MB: open it in a browser")
    return 0


def html(content: dict[str, Any]) -> str:
    """The page of a content, as `_content` makes it; it runs no script but its own."""
    folder = resources.files("interflow_jax.cli")
    page, script = ((folder / f"explore.{kind}").read_text("utf-8") for kind in ("html", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = json.dumps(content)
    for char in "<>&":  # no name ends the script element that it stands in
        text = text.replace(char, f"\\u{ord(char):04x}")
    page = page.replace("@HASH@", f"sha256-{digest}").replace("@SCRIPT@", script)
    return page.replace("@DATA@", text)


def _content(run: TrainedRun, dataset: Dataset, given: Any) -> dict[str, Any]:
    """What the page shows."""
    depths = Depths(run)
    fusion, sure, plans, note = _exits(depths, dataset, given.held_out)
    labels, said = depths.test.labels, np.asarray(depths.logits(fusion, "test")).argmax(-1)
    notes = [note]
    random = np.random.default_rng(0).permutation(len(labels))
    kept = np.sort(random[: _MOST_ANSWERS // len(run.labels)])
    if len(kept) < len(labels):
        notes.append(f"Of {len(labels):,} test images, {len(kept):,} drawn at random are measured.")
    labels, said, sure = labels[kept], said[kept], sure[kept]
    whole = 100 * float(depths.correct(OWN)[kept, -1].mean())
    sample = _sample(labels, said, given.pictures)
    with data.reading(dataset.name):
        shown = splits.read(dataset.test, kept[sample])[0]
    weights = picture_weights(run.predict(shown))
    files = getattr(dataset.test, "files", None)
    names = ["/".join(files[i].parts[-2:]) if files else f"test image {i}" for i in kept[sample]]
    if weights is not None:
        notes.append(
            "Weights are the trained model's, for the predicted class or image where they differ."
        )
    result = run.result
    return {
        "title": f"{result['method']} on {printable(result['dataset'])}, seed {result['seed']}",
        "notes": [f"{len(kept):,} test images; the whole model is right in {whole:.2f} %.", *notes],
        "classes": list(run.class_names),
        "depths": [str(label) for label in run.labels],
        "operations": list(depths.spent),
        "whole": depths.operations[-1],
        "whole_accuracy": whole,
        "plans": plans,
        "labels": _packed(labels, "<u2"),
        "said": _packed(said, "<u2"),
        "confidence": _packed(sure, "<f4"),
        "pictures": [
            {
                "index": int(index),
                "name": printable(name),
                "image": _image(image),
                "weights": None if weights is None else weights[number].tolist(),
            }
            for number, (index, name, image) in enumerate(zip(sample, names, shown, strict=True))
        ],
    }


def _exits(depths: Depths, dataset: Dataset, most: int) -> tuple[str, np.ndarray, list, str]:
    """How depths predict and images leave, as `interflow exits` chooses it.

    Returns:
      The fusion, confidences, [test images, exits], thresholds within `SHARES`, and it in words.
    """
    try:
        if len(depths.run.labels) == 1:
            raise ValueError("the run has one branch")
        unseen(depths.run, dataset, most)
    except ValueError as error:
        depths.predict_test(dataset)
        depths.fit = depths.test  # nothing is fitted
        sure = np.asarray(confidence(depths.logits(OWN, "test")))
        note = f"Confidence is the largest probability, as the model has it: {error}."
        return OWN, sure, [], note
    print("choosing how depths predict, and when images leave ...", flush=True)
    depths.predict(dataset, most)
    exits, plans = Exits(depths), []
    for share in SHARES[:-1]:
        if share * depths.operations[-1] >= depths.spent[0]:
            thresholds = exits.within(share * depths.operations[-1])["thresholds"]
            name = f"within {share:.0%} of the operations"
            plans.append({"name": name, "thresholds": thresholds})
    fusion, measure = exits.policy["fusion"], exits.policy["measure"]
    words = "the model's own" if fusion == OWN else f"a fitted {fusion}"
    count = len(depths.fit.labels) + len(depths.held.labels)
    note = (
        f"Each depth predicts with {words} fusion of the branches up to there; confidence is the "
        f"{measure}, at a temperature per depth: as interflow exits chose on {count:,} training "
        "images that the run has not seen."
    )
    return fusion, exits.confidences["test"], plans, note


def _sample(labels: np.ndarray, said: np.ndarray, count: int) -> np.ndarray:
    """Indices of images: in turn one that is first right at each depth, or at none."""
    right = np.concatenate([said == labels[:, None], np.ones((len(labels), 1), bool)], axis=1)
    first = right.argmax(1)
    turn = np.zeros(len(labels), int)
    for depth in range(right.shape[1]):
        turn[first == depth] = np.random.default_rng(0).permutation(np.sum(first == depth))
    return np.lexsort((first, turn))[:count]


def picture_weights(prediction: Prediction) -> np.ndarray | None:
    """The fusion's weights for each image's predicted class: [images, branches]."""
    if prediction.weights is None:
        return None
    weights, predicted = np.asarray(prediction.weights), np.asarray(prediction.logits).argmax(-1)
    if weights.ndim == 3:
        return weights[..., 0]
    return weights[:, predicted].T if weights.ndim == 2 else np.tile(weights, (len(predicted), 1))


def _packed(numbers: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers, kind).tobytes()).decode()


def _image(pixels: np.ndarray) -> str:
    shown = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    picture, stream = Image.fromarray(shown), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _flags(arguments: list[str]) -> Any:
    parser = Parser("explore", __doc__ or "")
    add = parser.add_argument
    add_run(parser, "folder of a finished run")
    add("--out", help="the file to write (default: explore.html in the run's folder)")
    add("--pictures", type=int, default=60, help=f"to show, at most {_MOST_PICTURES} (default: 60)")
    about = f"as of interflow exits (default: {HELD_OUT})"
    add("--held_out", type=int, default=HELD_OUT, help=about)
    add_data_dir(parser)
    given = parser.parse_args(arguments)
    if not 1 <= given.pictures <= _MOST_PICTURES:
        parser.error(f"--pictures={given.pictures}: choose 1 to {_MOST_PICTURES}")
    if given.held_out < 2:
        parser.error(f"--held_out={given.held_out}: choose 2 or more")
    return given
