"""Long videos of activities with many steps: COIN and Breakfast."""

import re
import warnings
from collections.abc import Collection
from pathlib import Path

from flexvideo.data.files import by_key, find_lists, match, require_folder, stem, video_files
from flexvideo.data.lists import read_rows
from flexvideo.data.records import Problem, Splits, VideoRecord, VideoSet, plural
from flexvideo.data.sets_fine import load_json, required
from flexvideo.errors import ConfigError, DatasetError, DatasetWarning

COIN = Splits("COIN", ("train", "test"))
BREAKFAST = Splits("Breakfast", ("train", "test"), folds=("videomamba", "s1", "s2", "s3", "s4"))
BREAKFAST_CLASSES = (
    *("cereals", "coffee", "tea", "pancake", "friedegg"),
    *("scrambledegg", "sandwich", "juice", "milk", "salat"),
)
BREAKFAST_CAMERAS = ("cam01", "cam02", "webcam01", "webcam02", "stereo")
BREAKFAST_VIDEOS = 1712  # of stereo cameras, the first lens only
BREAKFAST_SKIPPED = ("P28-cam01-P28_cereals", "P28-cam02-P28_cereals", "P27-stereo-P27_milk_ch0")
_BREAKFAST_TEST = {
    "videomamba": range(47, 55),
    **{"s1": range(3, 16), "s2": range(16, 29), "s3": range(29, 42), "s4": range(42, 55)},
}
_BREAKFAST_NAME = re.compile(
    rf"P(?P<person>\d\d)-(?P<camera>{'|'.join(BREAKFAST_CAMERAS)})-P(?P=person)_"
    rf"(?P<activity>{'|'.join(BREAKFAST_CLASSES)})(?P<lens>_ch[01])?"
)


def from_coin(root: str | Path, *, split: str, annotations: str | Path | None = None) -> VideoSet:
    """Open COIN: 180 tasks, 11,827 videos from YouTube, whole, of which many can no longer be had.

    Videos are found by their id at any depth, so also in the folders by number of the task (`recipe_type`)
    which the official downloader makes. The label is that number.

    Args:
        root: folder with the videos.
        split: "train" or "test".
        annotations: folder with `COIN.json`; None looks in and beside the root.

    Raises:
        DatasetError: no list, or no video.

    Example:
        >>> from_coin("/data/coin", split="test")  # doctest: +SKIP
    """
    COIN.check(split)
    root, title = require_folder(root), f"COIN {split}"
    source = find_lists(
        root,
        annotations,
        ["COIN.json"],
        folders=["annotations"],
        title=title,
        remedy="Download it from github.com/coin-dataset/annotations",
    )[0]
    wanted, names = [], {}
    for video, entry in required(load_json(source, dict), "database", dict, source=source).items():
        label = required(entry, "recipe_type", int, source=source)
        names[label] = required(entry, "class", str, source=source)
        if required(entry, "subset", str, source=source) == {"train": "training", "test": "testing"}[split]:
            wanted.append((video, VideoRecord(f"{label}/{video}.mp4", label, video)))
    # Ids of YouTube have no dots, and some downloaders write `<id>.mp4.webm`.
    files = by_key(video_files(root), lambda path: Path(path).name.split(".")[0])
    records, missing = match(wanted, files, title=title, root=root, source=source)
    classes = tuple(names[label] for label in sorted(names))
    return VideoSet(COIN.title, split, records, classes, omitted=missing)


def from_breakfast(
    root: str | Path,
    *,
    split: str,
    fold: str = "videomamba",
    cameras: Collection[str] = BREAKFAST_CAMERAS,
    annotations: str | Path | None = None,
) -> VideoSet:
    """Open Breakfast as videos of 10 activities, each filmed by up to five cameras: 1,712 videos.

    Of a stereo camera only the first lens (`_ch0`) counts, as in the published lists. "videomamba" trains on
    people 3 to 46 (1,354 videos: 1,357 less three which that protocol skips) and tests on 47 to 54 (355);
    "s1" to "s4" test on 3 to 15, 16 to 28, 29 to 41 and 42 to 54, and train on the others.

    Args:
        root: folder with `P03/cam01/P03_cereals.avi` at any depth.
        split: "train" or "test".
        fold: the protocol: "videomamba", "s1", "s2", "s3" or "s4".
        cameras: those wanted.
        annotations: folder with the `train.csv` and `test.csv` of ViS4mer, whose rows are such as
            `P47-cam01-P47_cereals,46,cereals,0`; None takes the videos that are there.

    Raises:
        ConfigError: an unknown camera.
        DatasetError: no list in the folder named, or no video.

    Example:
        >>> from_breakfast("/data/breakfast", split="test", cameras=["cam01"])  # doctest: +SKIP

    Source: the lists of ViS4mer (Islam and Bertasius, 2022), which VideoMamba follows.
    """
    BREAKFAST.check(split, fold)
    root, title = require_folder(root), f"Breakfast {split} ({fold})"
    unknown = sorted(set(cameras) - set(BREAKFAST_CAMERAS))
    if unknown:
        raise ConfigError(f"Breakfast has no camera {unknown[0]!r}; known: {', '.join(BREAKFAST_CAMERAS)}.")
    files = by_key(video_files(root), lambda path: "-".join([*Path(path).parts[-3:-1], stem(path)]))
    if annotations is None:
        names, source = sorted(name for name in files if _BREAKFAST_NAME.fullmatch(name)), root
        if not names:
            raise DatasetError(
                f"{title}: of {plural(len(files), 'video')} under {root} none is called such as "
                "P03/cam01/P03_cereals.avi. Name the folder that holds the videos."
            )
        _warn_if_few(names, root)
    else:
        names, source = _breakfast_names(root, annotations), Path(annotations)
    wanted, left_out = _breakfast_split(names, split, fold, cameras, source)
    records, missing = match(wanted, files, title=title, root=root, source=source)
    return VideoSet(
        BREAKFAST.title, split, records, BREAKFAST_CLASSES, fold=fold, omitted=(*missing, *left_out)
    )


def _breakfast_split(
    names: list[str], split: str, fold: str, cameras: Collection[str], source: Path
) -> tuple[list[tuple[str, VideoRecord]], list[Problem]]:
    wanted, left_out = [], []
    for name in names:
        found = _BREAKFAST_NAME.fullmatch(name)
        if found is None:
            raise DatasetError(f"{source} has {name!r}; names such as P47-cam01-P47_cereals were expected.")
        test = int(found["person"]) in _BREAKFAST_TEST[fold]
        if test != (split == "test") or found["camera"] not in cameras:
            continue
        path = f"P{found['person']}/{found['camera']}/{name.rpartition('-')[2]}.avi"
        if found["lens"] == "_ch1":
            left_out.append(Problem(path, "second lens of a stereo camera"))
        elif fold == "videomamba" and name in BREAKFAST_SKIPPED:
            left_out.append(Problem(path, "skipped by the protocol"))
        else:
            label = BREAKFAST_CLASSES.index(found["activity"])
            wanted.append((name, VideoRecord(path, label, name, view=found["camera"])))
    return wanted, left_out


def _warn_if_few(names: list[str], root: Path) -> None:
    """Tell that videos are missing, which without a list only their number can."""
    count = sum(not name.endswith("_ch1") for name in names)
    if 0 < count < BREAKFAST_VIDEOS:
        warnings.warn(
            f"{count:,} of the {BREAKFAST_VIDEOS:,} videos of Breakfast are under {root}; to see which are "
            "missing, name the folder of train.csv and test.csv as `annotations`.",
            DatasetWarning,
            stacklevel=3,
        )


def _breakfast_names(root: Path, annotations: str | Path) -> list[str]:
    """Names in both lists, as the official folds divide people in another way than the lists do."""
    return [
        row.path
        for name in ("train.csv", "test.csv")
        for source in find_lists(
            root,
            annotations,
            [name],
            folders=[],
            title="Breakfast",
            remedy="Take data/Breakfast/train.csv and test.csv of ViS4mer",
        )
        for row in read_rows(source)
    ]
