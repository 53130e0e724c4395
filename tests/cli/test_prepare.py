"""What is there already needs no preparation, and is told."""

import numpy as np
from PIL import Image

from experiments import prepare


def test_a_folder_of_pictures_is_told_as_it_is(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / name / f"{number}.png")
    assert prepare.main([f"--dataset=folder:{tmp_path}"]) == 0
    told = "18 training and 2 test images of (5, 6, 1), 2 classes"
    assert capsys.readouterr().out.strip() == told
