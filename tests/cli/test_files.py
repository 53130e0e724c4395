"""Files are whole, on the disk before anything relies on them, and nobody else's."""

import os

import pytest

from interflow_jax.cli import files
from interflow_jax.cli.files import LockedError, locked, write_whole


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
    assert [os.path.dirname(event) for event in events] == [str(tmp_path), str(tmp_path.parent)]
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_other_files_links_and_pipes_stay_what_they_are(tmp_path):
    for name in ("a.csv.tmp", ".writable"):
        (tmp_path / name).write_text("mine")
    target, link, pipe = (tmp_path / name for name in ("target.csv", "a.csv", "pipe"))
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
    assert {(tmp_path / name).read_text() for name in ("a.csv.tmp", ".writable")} == {"mine"}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "through")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_failure_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_whole(file, "old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["a.json"])


def test_a_lock_says_who_holds_it_and_clears_what_a_kill_left(tmp_path):
    (tmp_path / "pictures").mkdir()
    for draft in (".draft-x", "pictures/.draft-y"):
        (tmp_path / draft).write_text("half")
    held = f"process {os.getpid()} on .*; wait for it"
    with locked(tmp_path), pytest.raises(LockedError, match=held), locked(tmp_path):
        pass
    assert {*tmp_path.rglob("*")} == {tmp_path / name for name in (".lock", "pictures")}


def test_beside_a_pipe_nothing_is_written(tmp_path, monkeypatch):
    os.mkfifo(pipe := tmp_path / "pipe")
    monkeypatch.setattr(files, "writable", None)  # as /dev of all but root
    assert files.output_file(str(pipe)) == pipe
