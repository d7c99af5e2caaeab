"""Short videos of one action each: UCF101, HMDB51, Kinetics-400."""

import csv
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from flexvideo.data.files import by_key, find_lists, match, read_lines, require_folder, stem, video_files
from flexvideo.data.records import Splits, VideoRecord, VideoSet
from flexvideo.errors import DatasetError

UCF101 = Splits("UCF101", ("train", "test"), folds=("1", "2", "3"))
HMDB51 = Splits("HMDB51", ("train", "test"), folds=("1", "2", "3"))
KINETICS400 = Splits("Kinetics-400", ("train", "val", "test"))
_HMDB51_FLAGS = {"train": "1", "test": "2"}  # 0 is in neither split of this fold


def from_ucf101(
    root: str | Path, *, split: str, fold: str = "1", annotations: str | Path | None = None
) -> VideoSet:
    """Open UCF101: 101 classes, 13,320 videos; fold 1 has 9,537 for training and 3,783 for test.

    Videos are found by name at any depth, whatever their container, and without regard to case: the lists
    and the archives disagree on HandStandPushups.

    Args:
        root: folder with `UCF-101/<Class>/v_<Class>_gNN_cNN.avi`, or that folder.
        split: "train" or "test".
        fold: "1", "2" or "3".
        annotations: folder with `classInd.txt` and `trainlist01.txt`; None looks in and beside the root.

    Raises:
        DatasetError: no list, no video, or a label that contradicts the classes.

    Example:
        >>> from_ucf101("/data/ucf101", split="test", fold="1")  # doctest: +SKIP
    """
    UCF101.check(split, fold)
    root, title = require_folder(root), f"UCF101 {split}"

    def find(name: str) -> Path:
        return find_lists(
            root,
            annotations,
            [name],
            folders=["ucfTrainTestlist", "annotations"],
            title=title,
            remedy="Download UCF101TrainTestSplits-RecognitionTask.zip from the home of UCF101",
        )[0]

    class_file, source = find("classInd.txt"), find(f"{split}list0{fold}.txt")
    classes = _ucf101_classes(class_file)
    number = {name.lower(): label for label, name in enumerate(classes)}
    wanted = []
    for line in read_lines(source):
        path, told = line.split()[0], line.split()[1:]
        label = number.get(path.split("/")[0].lower())
        if label is None or told not in ([], [str(label + 1)]):
            raise DatasetError(
                f"{source} has {line!r}, which contradicts the {len(classes)} classes of {class_file}: take "
                "both from the same archive."
            )
        wanted.append((stem(path).lower(), VideoRecord(path, label, stem(path))))
    files = by_key(video_files(root), lambda path: stem(path).lower())
    records, missing = match(wanted, files, title=title, root=root, source=source)
    return VideoSet(UCF101.title, split, records, classes, fold=fold, omitted=missing)


def from_hmdb51(
    root: str | Path, *, split: str, fold: str = "1", annotations: str | Path | None = None
) -> VideoSet:
    """Open HMDB51: 51 classes, 6,766 videos, of which a fold uses 3,570 for training and 1,530 for test.

    Args:
        root: folder with `<class>/<name>.avi` at any depth.
        split: "train" or "test".
        fold: "1", "2" or "3".
        annotations: folder with `<class>_test_split1.txt`; None looks in and beside the root.

    Raises:
        DatasetError: no list, or no video.

    Example:
        >>> from_hmdb51("/data/hmdb51", split="train", fold="1")  # doctest: +SKIP
    """
    HMDB51.check(split, fold)
    root, title, ending = require_folder(root), f"HMDB51 {split}", f"_test_split{fold}.txt"
    lists = find_lists(
        root,
        annotations,
        [f"*{ending}"],
        folders=["testTrainMulti_7030_splits", "annotations", "splits"],
        title=title,
        remedy="Download test_train_splits.rar from the home of HMDB51",
    )
    classes = tuple(path.name.removesuffix(ending) for path in lists)
    wanted = []
    for label, path in enumerate(lists):
        for video in _hmdb51_videos(path, _HMDB51_FLAGS[split]):
            name = f"{classes[label]}/{stem(video)}"
            wanted.append((name, VideoRecord(f"{classes[label]}/{video}", label, name)))
    # By folder too, for the same name may stand in two classes.
    files = by_key(video_files(root), lambda path: f"{Path(path).parent.name}/{stem(path)}")
    records, missing = match(wanted, files, title=title, root=root, source=lists[0].parent)
    return VideoSet(HMDB51.title, split, records, classes, fold=fold, omitted=missing)


def from_kinetics400(root: str | Path, *, split: str, annotations: str | Path | None = None) -> VideoSet:
    """Open Kinetics-400, or another set with its csv files; the classes are the names in them, sorted.

    Videos are found by name at any depth: in folders of classes, written with blanks or underscores, or in
    one folder; as `<id>_000417_000427.mp4` or `<id>.mp4`. Those in a folder `replacement...` of the CVDF's
    archives stand for the damaged ones of the same name. Everyone lacks some videos of this set.

    Args:
        root: folder with the videos.
        split: "train", "val" or "test".
        annotations: folder with `train.csv` and `val.csv`; None looks in and beside the root.

    Raises:
        DatasetError: no csv file, one without the columns of Kinetics, or no video.

    Example:
        >>> from_kinetics400("/data/k400", split="val")  # doctest: +SKIP
    """
    KINETICS400.check(split)
    root, title = require_folder(root), f"Kinetics-400 {split}"
    source = _kinetics_list(root, split, annotations)
    clips = list(_kinetics_clips(source))
    names = {clip.label for clip in clips}
    if split != "train":  # The classes are those that can be learnt.
        names = {clip.label for clip in _kinetics_clips(_kinetics_list(root, "train", annotations))}
    classes = tuple(sorted(name for name in names if name is not None))
    number = {name: label for label, name in enumerate(classes)}
    files = by_key(video_files(root), _name_before_dots, preferred="replacement")
    wanted = []
    for clip in clips:
        if clip.label is not None and clip.label not in number:
            raise DatasetError(
                f"{source} has a video of class {clip.label!r}, outside the {len(classes)} classes of the "
                "training list beside it: use lists of one version of the data set."
            )
        key = clip.name if clip.name in files else clip.youtube_id
        label = None if clip.label is None else number[clip.label]
        wanted.append((key, VideoRecord(f"{clip.name}.mp4", label, clip.name)))
    records, missing = match(wanted, files, title=title, root=root, source=source)
    return VideoSet(KINETICS400.title, split, records, classes, omitted=missing)


class _Clip(NamedTuple):
    youtube_id: str
    name: str
    label: str | None


def _hmdb51_videos(source: Path, wanted: str) -> Iterator[str]:
    for line in read_lines(source):
        video, _, flag = line.rpartition(" ")
        if flag not in ("0", "1", "2"):
            raise DatasetError(
                f"{source} has {line!r}; each line should end in 1 (train), 2 (test) or 0 (neither)."
            )
        if flag == wanted:
            yield video.strip()


def _kinetics_list(root: Path, split: str, annotations: str | Path | None) -> Path:
    return find_lists(
        root,
        annotations,
        [f"{split}.csv", f"kinetics*{split}.csv", f"k400*{split}.csv"],
        folders=["annotations", "labels"],
        title="Kinetics-400",
        remedy="Download train.csv and val.csv from the CVDF's kinetics-dataset; for folders of classes "
        "without a list use `folder:`, for other lists `list:`",
    )[0]


def _kinetics_clips(source: Path) -> Iterator[_Clip]:
    reader = csv.DictReader(_text(source))
    columns = ("youtube_id", "time_start", "time_end")
    if not set(columns) <= set(reader.fieldnames or ()):
        raise DatasetError(
            f"{source} is no list of Kinetics: its first line should name {', '.join(columns)}, and is "
            f"{','.join(reader.fieldnames or ())!r}. Open other lists as `list:`."
        )
    for row in reader:
        try:
            start, end = round(float(row["time_start"])), round(float(row["time_end"]))
        except (TypeError, ValueError) as error:  # a line that ends too soon gives None
            raise DatasetError(
                f"{source}, line {reader.line_num}: time_start and time_end must be seconds, got "
                f"{row['time_start']!r} and {row['time_end']!r}."
            ) from error
        label = (row.get("label") or "").replace("_", " ").strip()
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        yield _Clip(row["youtube_id"], name, label or None)


def _text(source: Path) -> StringIO:
    """Names of classes are shown, unlike those of files, and bytes that are no text cannot be."""
    try:
        return StringIO(source.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{source}, line {line}, is not in UTF-8: save the list in that encoding."
        ) from error


def _ucf101_classes(source: Path) -> tuple[str, ...]:
    """Class names of `classInd.txt`, whose numbers begin at 1."""
    lines = [line.split() for line in read_lines(source)]
    if [(line[0], len(line)) for line in lines] != [(str(number), 2) for number in range(1, len(lines) + 1)]:
        raise DatasetError(
            f"{source} should number the classes from 1 on, in order, a number and a name on each line; it "
            f"begins {lines[:2]}."
        )
    return tuple(line[1] for line in lines)


def _name_before_dots(path: str) -> str:
    """Ids of YouTube have no dots, and some downloaders write `<name>.mp4.webm`."""
    return os.path.basename(path).split(".")[0]
