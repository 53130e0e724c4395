"""Files are whole, and on the disk, before anything relies on them."""

import os

from experiments.runs.files import write_whole


def test_content_then_name_are_synced(tmp_path, monkeypatch):
    """For a loss of power: the draft before it takes the name, the folder after."""
    events = []
    fsync = os.fsync

    def synced(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    file = tmp_path / "a.json"
    write_whole(file, "new")
    assert events == [str(tmp_path / "a.json.tmp"), str(tmp_path)]
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]
