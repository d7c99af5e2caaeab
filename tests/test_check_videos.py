from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import videos as awkward

from flexvideo.data import Problem, VideoRecord, check_videos, from_folder, from_list, write_list
from flexvideo.errors import DatasetError


def record(path: Path, **fields: float) -> VideoRecord:
    return VideoRecord(str(path), 0, path.name, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good videos and four bad ones, of one class."""
    layouts.videos(tmp_path, ["run/a.mp4", "run/b.mp4"])
    (tmp_path / "run/cut.mp4").write_bytes(layouts.tiny_video()[:300])
    (tmp_path / "run/empty.mp4").touch()
    (tmp_path / "run/page.mp4").write_text("<html>404 Not Found</html>")
    (tmp_path / "run/folder.mp4").mkdir()
    return tmp_path


def test_damaged_files_are_told_from_good_ones(folder: Path) -> None:
    paths = [*sorted((folder / "run").iterdir()), folder / "gone.mp4"]
    check = check_videos([record(path) for path in paths], workers=2)
    assert [good.id for good in check.good] == ["a.mp4", "b.mp4"]
    reasons = {Path(problem.path).name: problem.reason for problem in check.problems}
    assert list(reasons) == ["cut.mp4", "empty.mp4", "folder.mp4", "page.mp4", "gone.mp4"]
    assert reasons["empty.mp4"] == "is empty (0 bytes)."
    assert reasons["folder.mp4"] == "is a directory; a video file was expected."
    assert reasons["gone.mp4"] == "does not exist; a video file was expected."
    assert reasons["page.mp4"].startswith("cannot be read as a video: Invalid data found")
    assert reasons["cut.mp4"].startswith("cannot be read as a video")
    assert str(check).startswith("2 videos are good, 5 are not:\n  /")


def test_sets_go_in_and_lists_come_out(folder: Path) -> None:
    videos = from_folder(folder)
    check = check_videos(videos)
    assert len(replace(videos, records=check.good)) == 2
    write_list(folder / "good.csv", check.good)
    assert [Path(record.path).name for record in from_list(folder / "good.csv")] == ["a.mp4", "b.mp4"]


def test_the_result_does_not_depend_on_workers(folder: Path) -> None:
    videos = from_folder(folder)
    assert check_videos(videos, workers=1) == check_videos(videos, workers=3)


def test_damage_in_the_middle_of_which_decoding_makes_the_best(tmp_path: Path) -> None:
    paths = [
        awkward.constant_b(tmp_path),
        awkward.truncated_mp4(tmp_path),
        awkward.scratched(tmp_path),
        awkward.avi_packed(tmp_path),
        awkward.wrong_header(tmp_path),
        awkward.one_frame(tmp_path),
    ]
    check = check_videos([record(path) for path in paths], workers=2)
    reasons = {Path(problem.path).name: problem.reason for problem in check.problems}
    assert set(reasons) == {"cut.mp4", "scratched.mp4"}
    assert all(reason.startswith("is damaged (") for reason in reasons.values())


def test_segments_outside_the_video(tmp_path: Path) -> None:
    path = layouts.videos(tmp_path, ["a.mp4"]) / "a.mp4"  # 0.16 s
    check = check_videos([record(path, start=0.04, end=0.12), record(path, start=5.0, end=9.0)])
    assert [good.start for good in check.good] == [0.04]
    expected = "There is no segment from 5 s to 9 s in a video of 0.16 s"
    assert check.problems[0].reason.startswith(expected)


def test_progress_is_told_after_each(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    videos = from_folder(folder)
    check_videos(videos, workers=2, progress=lambda done, all_: told.append((done, all_)))
    assert told == [(n, 5) for n in range(1, 6)]


def test_no_readable_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    expected = r"Of 2 videos, not one can be decoded whole. The first: .*a.mp4: is empty \(0 bytes\)."
    with pytest.raises(DatasetError, match=expected):
        check_videos([record(tmp_path / "a.mp4"), record(tmp_path / "b.mp4")])
    with pytest.raises(DatasetError, match="Of 0 videos, not one can be decoded"):
        check_videos([])


def test_a_fault_of_the_decoder_is_the_fault_of_one_video(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexvideo.data import check as module

    honest = module.read_frames

    def fails(path: str, indices: object) -> object:
        if path.endswith("b.mp4"):
            raise RuntimeError("plane 0 is odd")
        return honest(path, indices)

    monkeypatch.setattr(module, "read_frames", fails)
    check = check_videos([record(folder / "run/a.mp4"), record(folder / "run/b.mp4")])
    assert check.problems == (Problem(str(folder / "run/b.mp4"), "plane 0 is odd"),)
