from __future__ import annotations

from pathlib import Path

import pytest

from memvit.online.labels import read_labels

NAMES = ("cut", "wash up", "pour, slowly")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "cut\nwash up\npour, slowly\n"),
        ("names.txt", "\ufeffcut\r\nwash up\r\npour, slowly"),
        ("names.json", '["cut", "wash up", "pour, slowly"]'),
        ("names.json", '{"2": "pour, slowly", "0": "cut", "1": "wash up"}'),
        ("names.json", '{"cut": 0, "pour, slowly": 2, "wash up": 1}'),
        ("names.csv", 'id,name\n0,cut\n2,"pour, slowly"\n1,wash up\n'),
        ("names.csv", '0,cut,x\n1,wash up,y\n2,"pour, slowly",z\n'),
    ],
)
def test_every_form_gives_the_names_in_the_order_of_the_classes(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_labels([path], [3]) == (NAMES,)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"cut\nwash\n", "holds 2 labels, but the model has 3 classes"),
        ("a.txt", b"", "holds 0 labels"),
        ("a.txt", b"cut\n\npour\n", "has no name for class 1"),
        ("a.txt", b"\xff\xfe\x00", "is no text file"),
        ("a.txt", b"a\0b\nc\nd", "is no text file"),
        ("a.json", b"[1, 2, 3]", "is no list of labels"),
        ("a.json", b"{", "is no JSON"),
        ("a.csv", b"cut\nwash\npour\n", "has a line with one column"),
        ("a.csv", b"id,name\n0,cut\n0,wash\n2,pour\n", "names class 0 twice"),
        ("a.csv", b"1,cut\n2,wash\n3,pour\n", "none for class 0"),
        ("a.csv", b"id,name\nx,cut\n", "'x' is no class id"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{says}"):
        read_labels([path], [3])


def test_heads_need_a_file_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    assert read_labels([tmp_path / "a.txt"] * 2, [1, 1]) == (("x",), ("x",))
    with pytest.raises(ValueError, match=r"2 heads \(1 \+ 1 classes\), but labels come in 1 file"):
        read_labels([tmp_path / "a.txt"], [1, 1])
    with pytest.raises(FileNotFoundError, match="there is no labels file"):
        read_labels([tmp_path / "b.txt"], [1])
