"""Volumes as a user writes them, and what is said about wrong ones."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusepipe.server import Volume, VolumeError

names = st.text(min_size=1, max_size=20).filter(lambda text: not set(text) & set("/\0="))
directories = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text and not text.endswith(":ro"))


@given(st.builds(Volume, names, directories, st.booleans()))
def test_text_leads_back_to_the_volume(volume: Volume) -> None:
    assert Volume.parse(str(volume)) == volume


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("data=/srv/data", Volume("data", "/srv/data")),
        ("data=/srv/data:ro", Volume("data", "/srv/data", read_only=True)),
        ("data=/srv/a=b:c", Volume("data", "/srv/a=b:c")),
        ("data=/srv/odd:ro/", Volume("data", "/srv/odd:ro/")),
        ("data=.", Volume("data", ".")),
    ],
)
def test_parse(text: str, volume: Volume) -> None:
    assert Volume.parse(text) == volume


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("/srv/data", "is not a volume"),
        ("=/srv", "has no name"),
        ("a/b=/srv", "contains a slash"),
        ("data=", "has no directory"),
        ("data=:ro", "has no directory"),
        ("data=/a\0b", "has no directory"),
    ],
)
def test_wrong_texts(text: str, part: str) -> None:
    with pytest.raises(VolumeError, match=part) as caught:
        Volume.parse(text)
    assert caught.value.remedy


def test_directories_are_checked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Volume("v", str(tmp_path)).check()
    for path, part in [("none", "no directory"), ("file", "is not a directory"), ("file/x", "is not a directory")]:
        with pytest.raises(VolumeError, match=part):
            Volume("v", str(tmp_path / path)).check()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_directory_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    child = os.fork()
    if child == 0:  # only a process of its own can give up root
        status = 1
        try:
            os.setuid(65534)
            with pytest.raises(VolumeError, match="may not reach"):
                Volume("v", str(tmp_path / "closed" / "inner")).check()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
