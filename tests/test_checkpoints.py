"""Checkpoints: the newest two, proved whole before they are read."""

import json
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax.checkpoints import Checkpoints, UnreadableError, UnwritableError, fingerprint
from interflow_jax.steps import TrainState


def state(number: float):
    return {"weights": jnp.full((50, 50), number), "step": jnp.asarray(3, jnp.int32)}


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, saved one after the other."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for number in (1, 5, 9):
        checkpoints.save(number, state(number), {"epoch": number, "loss": 0.1})
    checkpoints.close()
    return tmp_path / "checkpoints"


def restore(folder, like=None):
    said = []
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(like or state(0), said.append), said
    finally:
        checkpoints.close()


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_the_newest_two_are_kept_bit_for_bit(folder):
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"5", "9"}
    restored, said = restore(folder)
    assert restored is not None
    assert (restored.number, restored.notes) == (9, {"epoch": 9, "loss": 0.1})
    assert fingerprint(restored.state) == fingerprint(state(9))
    assert said == []


def test_shapes_are_enough_to_restore_by(folder):
    restored, said = restore(folder, jax.eval_shape(lambda: state(0)))
    assert restored is not None
    assert fingerprint(restored.state) == fingerprint(state(9))
    assert said == []


def test_the_state_s_collections_are_kept_and_older_checkpoints_have_none(tmp_path):
    variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {}}
    saved = TrainState(jnp.asarray(3), opt_state=(), **variables)
    older = {"step": saved.step, "opt_state": {}, **variables}  # before the field was
    full = saved.replace(collections={"cache": {"count": jnp.ones(3)}})
    for number, (written, like) in enumerate([(saved, saved), (older, saved), (full, full)]):
        folder = tmp_path / str(number)
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, written, {})
        checkpoints.close()
        restored, said = restore(folder, like)
        assert restored is not None
        assert (jax.tree.structure(restored.state), said) == (jax.tree.structure(like), [])
        assert fingerprint(restored.state) == fingerprint(like)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def delete(file):
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, delete])
def test_a_damaged_last_one_is_said_and_the_one_before_taken(folder, damage, capfd):
    damage(largest_file(folder / "9"))
    restored, said = restore(folder)
    assert restored is not None
    assert fingerprint(restored.state) == fingerprint(state(5))
    assert len(said) == 1
    assert said[0].startswith("checkpoint 9 cannot be read: 1 file(s) altered or missing")
    assert capfd.readouterr().err == ""


def test_saving_goes_on_after_a_damaged_one(folder):
    truncate(largest_file(folder / "9"))
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(state(0), lambda line: None)
    assert restored is not None
    checkpoints.discard_after(restored.number)
    checkpoints.save(9, state(90), {})
    checkpoints.close()
    again, said = restore(folder)
    assert again is not None
    assert (again.number, said) == (9, [])
    np.testing.assert_array_equal(again.state["weights"], 90)


def test_if_all_are_damaged_nothing_is_deleted(folder):
    for number in (5, 9):
        delete(largest_file(folder / str(number)))
    with pytest.raises(UnreadableError, match="none of the checkpoints"):
        restore(folder)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"5", "9"}


def test_a_draft_that_a_kill_left_is_no_checkpoint(folder):
    draft = folder / "12.orbax-checkpoint-tmp-0"
    draft.mkdir()
    (draft / "state").write_text("half")
    restored, said = restore(folder)
    assert restored is not None
    assert (restored.number, said) == (9, [])
    checkpoints = Checkpoints(folder)
    checkpoints.remove_drafts()
    checkpoints.close()
    assert not draft.exists()


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert restore(tmp_path) == (None, [])


@pytest.fixture
def limited():
    """Lets no file of this process grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_too_little_room_is_one_line_and_leaves_the_others(folder, limited, capfd):
    """The write fails below Python, in the middle; the next one works."""
    checkpoints, drawn = (
        Checkpoints(folder),
        {"weights": jax.random.normal(jax.random.key(0), (99, 99))},
    )
    limited(20_000)
    with pytest.raises(UnwritableError) as error:
        checkpoints.save(12, drawn, {})
    limited(resource.RLIM_INFINITY)
    assert "\n" not in str(error.value)
    assert list(folder.glob("*tmp*")) == []
    assert capfd.readouterr().err == ""
    restored, _ = restore(folder)
    assert restored is not None
    assert restored.number == 9
    checkpoints.save(12, state(12), {})
    checkpoints.close()
    again, _ = restore(folder)
    assert again is not None
    assert again.number == 12


@pytest.mark.parametrize("name", ["runs [v2]", "a*b?", "{x}", "é ü"])
def test_no_character_of_a_path_matters(tmp_path, name):
    checkpoints = Checkpoints(tmp_path / name / "checkpoints")
    for number in (1, 2, 3):
        checkpoints.save(number, state(number), {})
    checkpoints.close()
    restored, said = restore(tmp_path / name / "checkpoints")
    assert restored is not None
    assert (restored.number, said) == (3, [])


def test_one_that_cannot_be_read_back_replaces_none(folder, monkeypatch):
    checkpoints = Checkpoints(folder)

    def broken(number):
        raise ValueError("no index")

    monkeypatch.setattr(checkpoints._manager, "item_metadata", broken)
    with pytest.raises(UnwritableError, match="no index"):
        checkpoints.save(12, state(12), {})
    checkpoints.close()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"5", "9"}


def test_digests_that_a_kill_left_out_are_written_once_it_was_read(folder):
    """Between orbax's rename of the checkpoint and ours of its digests."""
    (folder / "9.sha256.json").rename(folder / "digests.tmp")
    checkpoints = Checkpoints(folder)
    checkpoints.remove_drafts()
    assert not (folder / "digests.tmp").exists()
    restored = checkpoints.restore()
    assert restored is not None
    checkpoints.complete(restored.number)
    checkpoints.close()
    digests = json.loads((folder / "9.sha256.json").read_text())
    damaged = folder / "9" / sorted(digests)[0]
    damaged.write_bytes(damaged.read_bytes() + b" ")
    restored, said = restore(folder)
    assert restored is not None
    assert restored.number == 5
    assert "checkpoint 9 cannot be read: 1 file(s) altered or missing" in said[0]


def test_fingerprints_tell_names_types_shapes_and_bits_apart():
    one = {"a": jnp.zeros((2, 3))}
    others = [
        {"b": jnp.zeros((2, 3))},
        {"a": jnp.zeros((3, 2))},
        {"a": jnp.zeros((2, 3), jnp.int32)},
        {"a": jnp.zeros((2, 3)).at[0, 0].set(1e-30)},
        {"a": jnp.zeros(())},
        {"a": jnp.zeros((1,))},
    ]
    assert len({fingerprint(tree) for tree in (one, *others)}) == 7
    assert fingerprint(one) == fingerprint({"a": jnp.zeros((2, 3))})
    columns = np.zeros((3, 2), np.float32).T  # the same numbers, not in the order of memory
    assert fingerprint(one) == fingerprint({"a": columns})
    low = [{"a": jnp.zeros(3, dtype)} for dtype in (jnp.bfloat16, jnp.float16)]
    assert fingerprint(low[0]) != fingerprint(low[1])
