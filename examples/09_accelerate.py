"""Flexible training in a loop of your own, under Hugging Face Accelerate.

    pip install accelerate
    accelerate launch examples/09_accelerate.py motion:short

Only model and optimizer are prepared. Accelerate would cut batches up anew, and a step of flexible training
has one size on all ranks: the loader is told the rank instead, and gives each its share.
"""

import argparse

import torch
from accelerate import Accelerator

import flexvideo as fv
from flexvideo.data import FlexLoader, open_source
from flexvideo.train import keyed, learning_rate, param_groups


def main(data: str, steps: int = 300, tokens: int = 8192) -> list[float]:
    """Train for some steps; return the loss of each."""
    accelerator = Accelerator()
    source = open_source(data, split="train")
    policy = fv.StaticTokens(frames=[4, 8], sizes=[32, 48])
    model = fv.VideoMamba(
        img_size=32, patch_size=8, depth=4, embed_dim=64, num_frames=8, num_classes=len(source.classes)
    )
    fv.make_flexible(model, policy=policy)  # first of all
    loader = FlexLoader(
        source,
        policy=policy,
        base=fv.plan_for(model).base,
        tokens=tokens,
        steps=steps,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
    )
    optimizer = torch.optim.AdamW(param_groups(model))
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    losses = []
    for step, (batch,) in enumerate(loader.epoch(0)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=steps, warmup=steps // 10, peak=1e-3)
        with keyed(model, batch.places, seed=0, epoch=0):  # drop path by sample
            scores = model(batch.clips, patch=batch.spec.patch)
        loss = torch.nn.functional.cross_entropy(scores, batch.labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), reduction="mean").item())
        accelerator.print(f"step {step}: {batch.spec}, loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    main(parser.parse_args().data)
