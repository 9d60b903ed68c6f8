"""Files that appear whole or not at all."""

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
