"""Writing a rendered set as video files in UCF101's layout, to exercise the path that real data takes."""

from pathlib import Path

from flexvideo.data.encode import write_video
from flexvideo.data.motion import RenderedSet
from flexvideo.errors import MotionError

_TEST_GROUPS, _TRAIN_GROUPS = range(1, 8), range(8, 26)  # those of UCF101's first split


def write_ucf101(
    root: str | Path, *, train: RenderedSet, test: RenderedSet, size: int | tuple[int, int], fps: float = 25.0
) -> int:
    """Write two sets as `UCF-101/<Class>/v_<Class>_gNN_cNN.mp4` and split files; returns the file count.

    Args:
        root: an absent or empty folder.
        train: clips of groups 8 to 25.
        test: clips of groups 1 to 7, of the same classes.
        size: height and width in pixels, or one number for a square.
        fps: frames a second, of the motion and of the files.

    Raises:
        MotionError: the folder holds something, or the classes differ.
        MissingExtraError: PyAV is absent.
    """
    root = Path(root)
    if root.is_dir() and any(root.iterdir()):
        raise MotionError(
            f"{root} is not empty; name a new folder, so that no older video stays among the new."
        )
    if train.classes != test.classes:
        raise MotionError(
            f"The sets differ in their classes: {train.classes} for training, {test.classes} for test."
        )
    names = [camel(name) for name in train.classes]
    trained = _write_clips(root / "UCF-101", train, names, _TRAIN_GROUPS, size, fps)
    tested = _write_clips(root / "UCF-101", test, names, _TEST_GROUPS, size, fps)
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    _write_lines(lists / "classInd.txt", [f"{i} {name}" for i, name in enumerate(names, 1)])
    _write_lines(lists / "trainlist01.txt", [f"{path} {label + 1}" for path, label in trained])
    _write_lines(lists / "testlist01.txt", [path for path, _ in tested])
    return len(trained) + len(tested)


def camel(name: str) -> str:
    """A class name as UCF101 writes them.

    Example:
        >>> camel("walk_forward")
        'WalkForward'
    """
    return "".join(word.capitalize() for word in name.replace("-", "_").split("_"))


def _write_clips(
    folder: Path, clips: RenderedSet, names: list[str], groups: range, size: int | tuple[int, int], fps: float
) -> list[tuple[str, int]]:
    counts, written = [0] * len(names), []
    for index, label in enumerate(clips.labels):
        turn, group = divmod(counts[label], len(groups))
        counts[label] += 1
        name = names[label]
        path = f"{name}/v_{name}_g{groups[group]:02d}_c{turn + 1:02d}.mp4"
        (folder / name).mkdir(parents=True, exist_ok=True)
        frames = max(1, round(clips.duration(index) * fps))
        write_video(folder / path, clips.sample(index, frames=frames, size=size), fps=fps)
        written.append((path, label))
    return sorted(written)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
