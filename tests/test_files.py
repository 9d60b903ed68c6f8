"""Files that appear whole or not at all."""

import os
import threading

import pytest

from recsys_edu.files import written_whole


def test_a_file_appears_when_it_is_written(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="killed"), written_whole(path) as partial:
        partial.write_text("ne")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_never_meet(tmp_path):
    """Each has a path of its own; the later one wins, whole."""
    path = tmp_path / "a.txt"
    with written_whole(path) as one:
        one.write_text("one")
        with written_whole(path) as two:
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_eight_writers_leave_one_whole_file(tmp_path):
    path, texts, errors = tmp_path / "a.txt", [str(k) * 10_000 for k in range(8)], []
    path.write_text(texts[0])

    def write(text):
        try:
            for _ in range(20):
                with written_whole(path) as partial:
                    partial.write_text(text)
                assert path.read_text() in texts
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.txt", []
    fsync = os.fsync

    def sync(file):
        synced.append(path.exists())
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync)
    with written_whole(path) as partial:
        partial.write_text("new")
    assert synced == [False]


def test_a_writer_that_wrote_nothing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())
