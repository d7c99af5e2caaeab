"""How training goes from one GPU to all of a host: clips a second of N processes against one.

    python benchmarks/scaling.py [--gpus 4] [--shard]

VideoMamba-M, trained flexibly (static tokens) in bfloat16 by `flexvideo.train.train`, which torchrun starts
here. Both take the very same steps, of the same clips in the same batches: N processes one batch each, one
process all N of them, accumulated. Clips are drawn once, on the device, and cut and resized there; nothing is
read or decoded. Half of the steps warm up. Scaling is clips a second over N times those of one process.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _results import ROOT, write_results

import flexvideo as fv
from flexvideo.data.clips import Size
from flexvideo.data.sampler import StepSampler
from flexvideo.data.source import Choose, ClipSource
from flexvideo.train import TrainConfig, processes, read_log, train

TIMED = 10  # steps, after as many that warm up
CLASSES, CLIPS = 400, 4096
MIDDLE = {"img_size": 224, "embed_dim": 576, "depth": 32, "num_frames": 16}
TOY = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_frames": 2, "patch_size": 8}
BATCH = 16  # clips of the model's own size that a process takes at once


class Drawn(ClipSource):
    """Noise on a device: a few videos of the model's own frame size, again and again."""

    name, classes, flip_ok = "drawn", tuple(map(str, range(CLASSES))), True

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._videos = torch.randint(256, (8, 32, size, size, 3), dtype=torch.uint8, device=device)

    @property
    def labels(self) -> tuple[int, ...]:
        return LABELS

    def identify(self, index: int) -> str:
        return f"drawn {index}"

    def take(self, index: int, choose: Choose, size: Size) -> torch.Tensor:
        video = self._videos[index % len(self._videos)]
        return video[torch.tensor(choose(len(video)), device=self.device)]


LABELS = tuple(index % CLASSES for index in range(CLIPS))


def sampling(*, toy: bool) -> tuple[fv.StaticTokens, int]:
    """What the sizes of a step are drawn from, and the tokens of a batch."""
    if toy:
        return fv.StaticTokens(frames=(2, 3), sizes=(16, 24)), 2 * 3 * 4
    return fv.StaticTokens(frames=(8, 16), sizes=(128, 224)), BATCH * 16 * 14 * 14


def work(folder: str, batches: int, *, toy: bool, shard: bool) -> None:
    """What each process does."""
    policy, tokens = sampling(toy=toy)
    with processes() as device:
        assert device is not None  # torchrun started this
        torch.manual_seed(0)
        arguments = TOY if toy else MIDDLE
        model = fv.VideoMamba(num_classes=CLASSES, **arguments).to(device)
        world = torch.distributed.get_world_size()
        config = TrainConfig(
            epochs=1,
            warmup_epochs=0,
            steps=2 * TIMED,
            tokens=batches * tokens,
            accumulate=batches // world,
            bf16=True,
            shard=shard,
            log_every=TIMED,
        )
        source = Drawn(arguments["img_size"], device)
        train(fv.make_flexible(model, policy=policy), source, config=config, out=folder)


def measure(world: int, batches: int, *, toy: bool, shard: bool) -> dict[str, Any]:
    """Train in so many processes; figures of the second half of the steps."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    more = ["--toy"] * toy + ["--shard"] * shard
    with tempfile.TemporaryDirectory() as folder:
        command = [*start, __file__, "--gpus", str(batches), "--folder", folder, *more]
        subprocess.run(command, check=True)
        record = [record for record in read_log(folder) if "loss" in record][-1]
    clips = timed_clips(batches, toy=toy)
    return {
        "model": "toy" if toy else "middle",
        "processes": world,
        "accumulate": batches // world,
        "spread by": "FSDP2" if shard else "DDP" if world > 1 else None,
        "steps": TIMED,
        "clips": clips,
        "seconds_per_step": round(record["seconds_per_step"], 5),
        "clips_per_second": round(clips / TIMED / record["seconds_per_step"], 2),
        "waiting_for_data": round(record["waiting_for_data"], 4),
    }


def timed_clips(batches: int, *, toy: bool) -> int:
    """Clips of the steps that are timed."""
    policy, tokens = sampling(toy=toy)
    model = fv.VideoMamba(num_classes=CLASSES, device="meta", **(TOY if toy else MIDDLE))
    sampler = StepSampler(
        LABELS,
        policy=policy,
        base=fv.plan_for(model).base,
        tokens=batches * tokens,
        cells=batches,
        steps=2 * TIMED,
    )
    plans = [sampler.plan(0, step) for step in range(2 * TIMED)]
    assert {plan.spec for plan in plans[:TIMED]} == {plan.spec for plan in plans}  # all of them warmed up
    return sum(plan.clips for plan in plans[TIMED:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, help="processes (default: all GPUs)")
    parser.add_argument("--shard", action="store_true", help="spread the model (FSDP2) instead of copying it")
    parser.add_argument("--toy", action="store_true", help="two processes on a CPU")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = options.gpus or (2 if options.toy else torch.cuda.device_count())
    if options.folder is not None:
        work(options.folder, count, toy=options.toy, shard=options.shard)
        return
    if count < 2 or (not options.toy and torch.cuda.device_count() < count):
        parser.error(f"it takes at least two GPUs, and as many as --gpus: {torch.cuda.device_count()} found.")
    one = measure(1, count, toy=options.toy, shard=False)
    all_of_them = measure(count, count, toy=options.toy, shard=options.shard)
    scaling = 100 * all_of_them["clips_per_second"] / one["clips_per_second"] / count
    all_of_them["scaling_percent"] = round(scaling, 1)
    for row in (one, all_of_them):
        print(
            f"{row['processes']} x {row['accumulate']} batches, {row['spread by'] or 'alone'}: "
            f"{row['clips_per_second']:.1f} clips/s, {100 * row['waiting_for_data']:.1f} % waiting for data"
        )
    print(f"scaling {scaling:.1f} %")
    print(write_results("scaling", [one, all_of_them], folder=options.results))


if __name__ == "__main__":
    main()
