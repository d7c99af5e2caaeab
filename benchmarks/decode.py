"""CPU milliseconds to read a clip's frames: exact seeking against decoding up to the last frame wanted.

    python benchmarks/decode.py [--repeats 5] [--threads 1]

The files are written first, with the sizes, lengths, codecs and keyframe intervals of common data sets.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import torch
from _results import write_results

from flexvideo.data.clips import fit, normalize, sample_frames
from flexvideo.data.decode import index_video, read_frames

# name: codec, height, width, frames, keyframe interval, B-frames, ending
FILES = {
    "ucf-like": ("mpeg4", 240, 320, 180, 12, 0, "avi"),
    "kinetics-like": ("libx264", 256, 456, 300, 250, 2, "mp4"),
    "breakfast-like": ("mpeg4", 240, 320, 2250, 12, 0, "avi"),
    "coin-like": ("libx264", 360, 640, 4500, 250, 2, "mp4"),
}


def write(path: Path, codec: str, height: int, width: int, frames: int, gop: int, bframes: int) -> None:
    """Write a scene that moves and has texture, so that decoding costs what it usually costs."""
    texture = torch.rand(3, height // 4, 2 * width // 4, generator=torch.Generator().manual_seed(0))
    scene = torch.nn.functional.interpolate(texture[None], size=(height, 2 * width), mode="bicubic")
    scene = (scene[0].permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
        for number in range(frames):
            left = abs(number * 3 % (2 * width) - width)
            picture = scene[:, left : left + width].contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def decode_all(path: Path, wanted: list[int]) -> torch.Tensor:
    """What a simple reader does: decode from the start and keep the frames that were asked for."""
    found = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found[number] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    return torch.stack([found[number] for number in wanted])


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, all threads together: other work on the machine changes it little."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return round(1e3 * statistics.median(times), 2)


def measure(path: Path, name: str, *, repeats: int, threads: int) -> list[dict[str, object]]:
    """One row for each number of frames; the two ways must give the same frames."""
    rows = []
    count = len(index_video(path))
    for frames in (8, 16, 64):
        wanted = sample_frames(count, frames)
        clip = read_frames(path, wanted, threads=threads)
        assert torch.equal(clip, decode_all(path, wanted))
        rows.append(
            {
                "file": name,
                "frames": frames,
                "of": count,
                "index ms": milliseconds(lambda: index_video(path), repeats),
                "exact ms": milliseconds(lambda w=wanted: read_frames(path, w, threads=threads), repeats),
                "decode all ms": milliseconds(lambda w=wanted: decode_all(path, w), repeats),
                "resize and normalise to 224 ms": milliseconds(
                    lambda c=clip: normalize(fit(c, 224)), repeats
                ),
            }
        )
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (codec, height, width, frames, gop, bframes, ending) in FILES.items():
            path = Path(folder) / f"{name}.{ending}"
            write(path, codec, height, width, frames, gop, bframes)
            rows += measure(path, name, repeats=options.repeats, threads=options.threads)
    print(write_results("decode", rows))


if __name__ == "__main__":
    main()
