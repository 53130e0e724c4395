"""Whether one version of jax runs what another exported: `.ci/run` writes with the oldest.

python -m tests.old_export write FILE
python -m tests.old_export check FILE
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import interflow_jax as ij
from interflow_jax.data.preprocessing import Preprocessing

SHAPE = (28, 28, 1)
IMAGES = np.random.default_rng(0).integers(256, size=(3, *SHAPE), dtype=np.uint8)


def write(file: Path) -> None:
    """Exports a network, with what it says of three images beside it."""
    model = ij.build("S3", num_classes=10, width=0.125)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    preprocessing = Preprocessing((0.5,), (0.25,), augment=False)
    program = ij.to_stablehlo(model, variables, preprocessing, SHAPE)
    probabilities, branches = jax.export.deserialize(bytearray(program)).call(IMAGES)
    file.write_bytes(program)
    about = {
        "sha256": hashlib.sha256(program).hexdigest(),
        "versions": {"jax": jax.__version__},
        "probabilities": probabilities.tolist(),
        "branches": branches.tolist(),
    }
    Path(f"{file}.json").write_text(json.dumps(about))


def check(file: Path) -> None:
    """Runs the program, and asks for the same probabilities."""
    program, about = ij.load_exported(file)
    probabilities, branches = program.call(IMAGES)
    np.testing.assert_allclose(probabilities, about["probabilities"], atol=1e-6)
    np.testing.assert_allclose(branches, about["branches"], atol=1e-6)
    print(f"jax {jax.__version__} runs what jax {about['versions']['jax']} exported")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
