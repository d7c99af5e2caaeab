"""What the loader adds to bare decoding, as a ratio of processor time and, with two workers, of wall time.

    python benchmarks/loader.py [--repeats 9] [--clips 64]

The loader, and a loop that only decodes, read as many frames of the same files by the same rule, in turns;
the median of the ratios counts, so that other work on the machine, which slows both, cancels. "bytes" is
frames at their final size, as they travel to a GPU; "batch" is the normalised batch of floats on the CPU.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from _results import write_results
from decode import write

from flexvideo import Base, StaticPatch
from flexvideo.data.augment import AUGMENTS, Augment
from flexvideo.data.clips import sample_frames
from flexvideo.data.decode import read_frames
from flexvideo.data.loader import FlexLoader
from flexvideo.data.reader import Cell, Reader
from flexvideo.data.records import VideoRecord, VideoSet
from flexvideo.data.source import VideoSource
from flexvideo.geometry import ClipSpec

# name: codec, height, width, frames, keyframe interval, B-frames, ending
FILES = {
    "ucf-like xvid": ("mpeg4", 240, 320, 200, 12, 0, "avi"),
    "ucf-like h264": ("libx264", 240, 320, 200, 12, 2, "mp4"),
}
FRAMES, BATCH = 16, 8
CASES = (  # side, augmentation, how far, worker processes
    (112, "light", "bytes", 0),
    (224, "light", "bytes", 0),
    (224, "light", "batch", 0),
    (224, "light", "batch", 2),
    (224, "videomamba", "batch", 2),
)
Run = Callable[[int], object]


def decode(job: tuple[str, str, int]) -> None:
    path, sampling, seed = job
    read_frames(path, sample_frames(200, FRAMES, sampling=sampling, seed=seed))


def bare(path: Path, augment: Augment, clips: int, workers: int) -> Run:
    """Decode the frames and drop them."""

    def run(turn: int) -> None:
        jobs = [(str(path), augment.sampling, turn * clips + clip) for clip in range(clips)]
        if workers:
            with get_context("fork").Pool(workers, torch.set_num_threads, (1,)) as pool:
                pool.map(decode, jobs, chunksize=BATCH)
                pool.close()
                pool.join()
        else:
            list(map(decode, jobs))

    return run


def loaded(path: Path, augment: Augment, clips: int, workers: int, side: int, *, to: str) -> Run:
    """Read batches of frames, to their final size or all the way."""
    records = tuple(VideoRecord(str(path), 0, str(clip)) for clip in range(clips // augment.repeats))
    source = VideoSource(VideoSet("clips", "train", records, ("any",)))
    loader = FlexLoader(
        source,
        policy=StaticPatch(frames=(FRAMES,), sizes=(side,)),
        base=Base(frames=FRAMES, height=side, width=side, patch=(16, 16)),
        tokens=FRAMES * (side // 16) ** 2 * BATCH,
        workers=workers,
        augment=augment,
    )
    reader = Reader(source, augment, 0, alters=False)

    def run(turn: int) -> None:
        if to == "batch":
            for _ in loader.epoch(turn):
                pass
            return
        for start in range(0, clips, BATCH):
            indices = tuple(range(start, start + BATCH))
            reader[Cell(ClipSpec(FRAMES, side, side, (16, 16)), indices, start, turn, 0, 0)]

    return run


def spent(run: Run, turn: int) -> tuple[float, float]:
    """Seconds of processor time, of child processes too, and of wall time."""
    before, start = processor_time(), time.perf_counter()
    run(turn)
    return processor_time() - before, time.perf_counter() - start


def processor_time() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def compare(run: Run, other: Run, clips: int, repeats: int) -> dict[str, float]:
    """Take turns; milliseconds a clip, and the medians of the ratios."""
    run(0), other(0)
    pairs = [(spent(run, turn), spent(other, turn)) for turn in range(1, repeats + 1)]
    return {
        "cpu ms": round(1e3 * statistics.median(ours[0] for ours, _ in pairs) / clips, 2),
        "bare cpu ms": round(1e3 * statistics.median(bare[0] for _, bare in pairs) / clips, 2),
        "cpu ratio": round(statistics.median(ours[0] / bare[0] for ours, bare in pairs), 3),
        "wall ratio": round(statistics.median(ours[1] / bare[1] for ours, bare in pairs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clips", type=int, default=64, help="a multiple of 8")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for file, (codec, height, width, frames, gop, bframes, ending) in FILES.items():
            path = Path(folder) / f"{file}.{ending}"
            write(path, codec, height, width, frames, gop, bframes)
            for side, name, to, workers in CASES:
                augment, clips = AUGMENTS[name], options.clips
                figures = compare(
                    loaded(path, augment, clips, workers, side, to=to),
                    bare(path, augment, clips, workers),
                    clips,
                    options.repeats,
                )
                rows.append(
                    {"file": file, "side": side, "augment": name, "to": to, "workers": workers} | figures
                )
                print(rows[-1])
    print(write_results("loader", rows))


if __name__ == "__main__":
    main()
