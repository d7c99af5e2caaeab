import pickle
import re
from pathlib import Path

import layouts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvideo.data import VideoRecord, VideoSet, from_list, require_known_classes, write_list
from flexvideo.data.lists import Row, class_names, read_rows
from flexvideo.data.records import Problem
from flexvideo.errors import ConfigError, DatasetError, DatasetWarning


def made(labels: list[int | None], classes: tuple[str, ...] = ("jump", "run"), **fields: object) -> VideoSet:
    records = tuple(VideoRecord(f"{n}.mp4", label, str(n)) for n, label in enumerate(labels))
    return VideoSet("toys", **{"split": "train", "records": records, "classes": classes, **fields})


# Sets


def test_a_set_is_a_sequence_of_plain_records() -> None:
    videos = made([0, 1, 1])
    assert len(videos) == 3
    assert list(videos)[2] == videos[2] == VideoRecord("2.mp4", 1, "2", start=None, end=None, view=None)
    assert videos.labels == (0, 1, 1)
    assert videos.counts() == (1, 2)
    assert pickle.loads(pickle.dumps(videos)) == videos


def test_a_set_as_text() -> None:
    reasons = ["no such file"] * 3 + ["is empty"] * 2 + ["b", "c", "d"]
    videos = made(
        [0, 1, 1, None], fold="2", omitted=tuple(Problem(f"{n}", reason) for n, reason in enumerate(reasons))
    )
    assert str(videos) == (
        "toys train (fold 2): 4 videos of 2 classes, 1 to 2 a class, 1 without label\n"
        "  left out: 3 (no such file), 2 (is empty), 1 (b), 2 for other reasons"
    )


@pytest.mark.parametrize("label", [2, -1])
def test_labels_outside_the_classes(label: int) -> None:
    with pytest.raises(
        DatasetError, match=f"toys train: 1 has label {label}, outside its 2 classes, which are .* 0 to 1"
    ):
        made([0, label])


def test_classes_that_cannot_be_learnt() -> None:
    train, test = made([0, 0], omitted=(Problem("x", "no such file"),)), made([0, 1], split="test")
    expected = r"Class 'run' of toys test has no video in toys train, .* \(1 video of it left out.\)"
    with pytest.raises(DatasetError, match=expected):
        require_known_classes(train, test)
    require_known_classes(test, train)
    other = made([0, 2], ("jump", "run", "swim"), split="test")
    expected = (
        "Class 'swim' of toys test is none of the 2 classes of toys train: add videos of it there, take it "
        "out here, or try another split (training: --val-split none tries none)."
    )
    with pytest.raises(DatasetError, match=f"^{re.escape(expected)}$"):
        require_known_classes(train, other)
    with pytest.raises(DatasetError, match="do not number the same 2 classes alike"):
        require_known_classes(train, made([0], ("run", "jump")))


# Lists


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("a.mp4 3", Row("a.mp4", "3")),
        ("a.mp4\t3", Row("a.mp4", "3")),
        ("a.mp4,3", Row("a.mp4", "3")),
        ("a.mp4;3", Row("a.mp4", "3")),
        ("a.mp4|3", Row("a.mp4", "3")),
        ("a.mp4 , 3", Row("a.mp4", "3")),
        ("a.mp4", Row("a.mp4")),
        ("a.mp4 -1", Row("a.mp4", "-1")),
        # Blanks and separators in paths
        ("my videos/take 2.mp4 3", Row("my videos/take 2.mp4", "3")),
        ("my videos/take 2.mp4,3", Row("my videos/take 2.mp4", "3")),
        ("one, two.mp4 3", Row("one, two.mp4", "3")),
        ("one, two.mp4,3", Row("one, two.mp4", "3")),
        ('"one, two.mp4",3', Row("one, two.mp4", "3")),
        ("#20_(a)_&_b!.avi 1", Row("#20_(a)_&_b!.avi", "1")),
        ("take 2.mp4", Row("take 2.mp4")),
        # Names as labels
        ("a.mp4 playing guitar", Row("a.mp4", "playing guitar")),
        ("a.mp4,passing American football (in game)", Row("a.mp4", "passing American football (in game)")),
        # The number of frames between
        ("a b.mp4 300 3", Row("a b.mp4", "3")),
        ("a.mp4,300,3", Row("a.mp4", "3")),
        ("frames/a 300 3", Row("frames/a", "3")),
        ("frames/a b 3", Row("frames/a b", "3")),
        ("frames/a 3", Row("frames/a", "3")),
        ("frames/a,300,3", Row("frames/a", "3")),
    ],
)
def test_lines_as_code_bases_write_them(tmp_path: Path, line: str, row: Row) -> None:
    path = layouts.text(tmp_path / "list.txt", line, "", line)
    assert read_rows(path) == [row, row]


@pytest.mark.parametrize(
    ("header", "line", "row"),
    [
        ("path,label", "a b.mp4,3", Row("a b.mp4", "3")),
        ("Path Label", "a.mp4 3", Row("a.mp4", "3")),
        ("label;video", "3;a.mp4", Row("a.mp4", "3")),
        ("path\tlabel\tstart\tend", "a.mp4\t3\t0.5\t", Row("a.mp4", "3", 0.5, None)),
        ("file_name,duration,action,class_id", "P47,46,tea,2", Row("P47", "2")),
        ("path", "a b.mp4", None),
        ("\ufeffpath,label", "a.mp4,3", Row("a.mp4", "3")),
    ],
)
def test_headers(tmp_path: Path, header: str, line: str, row: Row | None) -> None:
    path = layouts.text(tmp_path / "list.csv", header, line)
    assert read_rows(path) == [row or Row(line)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "list.csv is empty"),
        (["name,cls", "a.mp4,0", "b.mp4,1"], "begins with label 'cls', .* numbers. If this is a header"),
        (["a.mp4 1 2 3"], r"line 1, is not `path`, `path label` or `path frames label`: 'a.mp4 1 2 3'"),
        (["a.mp4,0", "b.mp4,0.5,1.5,1"], "line 2, is not `path`"),
        (["path,label", "a,b.mp4,1"], "line 2, has 3 columns, and the header has 2: path, label. Put paths"),
        (["path,label,start", "a.mp4,1,soon"], "line 2: 'soon' is no number of seconds"),
    ],
)
def test_lists_that_cannot_be_understood(tmp_path: Path, lines: list[str], expected: str) -> None:
    path = layouts.text(tmp_path / "list.csv", *lines)
    with pytest.raises(DatasetError, match=expected):
        read_rows(path)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"The list .*train.csv does not exist"):
        from_list(tmp_path / "train.csv")


NAMES = st.text("ab c.#!&(;,|_-é", min_size=1, max_size=8).map(lambda name: f"v{name}x.mp4")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(NAMES, st.integers(0, 400)), min_size=1, max_size=5), st.sampled_from(" \t"))
def test_any_path_survives_blanks_and_tabs(
    tmp_path_factory: pytest.TempPathFactory, pairs: list, separator: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "law.txt"
    layouts.text(path, *(f"{name}{separator}{label}" for name, label in pairs))
    assert read_rows(path) == [Row(name, str(label)) for name, label in pairs]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(NAMES, st.integers(0, 400)), min_size=1, max_size=5), st.booleans())
def test_written_lists_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list, segments: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    end = 2.5 if segments else None
    write_list(path, [VideoRecord(f"/data/{name}", label, name, end=end) for name, label in pairs])
    assert read_rows(path) == [Row(f"/data/{name}", str(label), None, end) for name, label in pairs]


def test_from_list_numbers_and_names(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["videos/a b.mp4", "videos/c.mp4"])
    path = layouts.text(tmp_path / "lists" / "train.csv", "a b.mp4 2", "c.mp4 -1")
    videos = from_list(path, prefix=tmp_path / "videos")
    assert [(record.path, record.label, record.id) for record in videos] == [
        (f"{tmp_path}/videos/a b.mp4", 2, "a b.mp4"),
        (f"{tmp_path}/videos/c.mp4", None, "c.mp4"),
    ]
    assert videos.classes == ("0", "1", "2")
    assert (videos.name, videos.split) == ("train.csv", "train")
    path = layouts.text(tmp_path / "videos" / "val.csv", "a b.mp4,run", f"{tmp_path}/videos/c.mp4,jump")
    assert from_list(path).labels == (1, 0)
    assert from_list(path, classes=["run", "walk", "jump"]).labels == (0, 2)
    with pytest.raises(DatasetError, match=r"class 'run', outside the 1 classes given: jump\."):
        from_list(path, classes=["jump"])


def test_from_list_refuses_numbers_outside_the_classes(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["a.mp4"])
    path = layouts.text(tmp_path / "train.csv", "a.mp4 2")
    with pytest.raises(DatasetError, match=r"a.mp4 has label 2, outside its 2 classes"):
        from_list(path, classes=["jump", "run"])


def test_from_list_counts_what_is_missing(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["a.mp4"])
    path = layouts.text(tmp_path / "train.csv", "a.mp4 0", "b.mp4 0", "deep/c.mp4 1")
    with pytest.warns(DatasetWarning, match="train.csv: 2 of the 3 videos that .* lists are not under"):
        videos = from_list(path)
    assert [Path(problem.path).name for problem in videos.omitted] == ["b.mp4", "c.mp4"]
    (tmp_path / "a.mp4").unlink()
    expected = rf"not one of the 3 videos .* is under {re.escape(str(tmp_path))}; looked for .*a.mp4, found 0"
    with pytest.raises(DatasetError, match=expected):
        from_list(path)


def test_written_lists_hold_full_paths_and_unlabelled_videos(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["a.mp4"])
    write_list(tmp_path / "out.csv", [VideoRecord(f"{tmp_path}/a.mp4", None, "a")])
    assert (tmp_path / "out.csv").read_text() == f"{tmp_path}/a.mp4,-1\n"
    assert from_list(tmp_path / "out.csv")[0].label is None


CLASSES = st.text("ab, ;|\t\"'#.5é", min_size=1, max_size=8).map(str.strip).filter(bool)


@settings(deadline=None, max_examples=100)
@given(st.lists(CLASSES, min_size=1, max_size=4, unique=True).map(sorted), st.booleans())
def test_written_names_of_classes_read_back(
    tmp_path_factory: pytest.TempPathFactory, classes: list, segments: bool
) -> None:
    """Unless one reads as a number, as which it would be taken: then numbers are written."""
    path, end = tmp_path_factory.getbasetemp() / "names.csv", 2.5 if segments else None
    records = [VideoRecord("/data/a.mp4", n, "a", end=end) for n in range(len(classes))]
    write_list(path, [*records, VideoRecord("/data/b.mp4", None, "b")], classes=classes)
    numbered = any(name.isdecimal() for name in classes)
    expected = tuple(map(str, range(len(classes)))) if numbered else tuple(classes)
    assert [row.label for row in read_rows(path)] == [*expected, "-1" if numbered else None]
    assert class_names(path) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_list_that_a_full_disk_does_not_take() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/full cannot be written: No space left on device\.$"):
        write_list("/dev/full", [VideoRecord("a.mp4", 0, "a")])
