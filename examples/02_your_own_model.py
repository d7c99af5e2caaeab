"""Wrap a model of your own: any module with a patch convolution and learned positional tables.

python examples/02_your_own_model.py
"""

from dataclasses import replace

import torch
from torch import nn

import flexvideo as fv


class MyVideoModel(nn.Module):
    """A small video classifier for 8 frames of 64 x 64, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, 48, kernel_size=(1, 8, 8), stride=(1, 8, 8))
        self.space = nn.Parameter(0.02 * torch.randn(1, 64, 48))
        self.time = nn.Parameter(0.02 * torch.randn(1, 8, 48))
        self.mix = nn.GRU(48, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Class scores (B, 10) of a clip (B, 3, T, H, W)."""
        tokens = self.patches(clip).flatten(3).permute(0, 2, 3, 1)  # (B, T, N, D)
        tokens = tokens + self.space[:, None] + self.time[:, :, None]
        return self.head(self.mix(tokens.flatten(1, 2))[0].mean(dim=1))


def main(steps: int = 4) -> None:
    """Train a few steps, every one at another geometry."""
    model = MyVideoModel()
    plan = fv.plan_for(model, size=64)  # the model itself does not say which size it was built for
    print(plan)  # what was found, what was left alone, and what is for you to settle: `space`
    plan = replace(plan, tables=(*plan.tables, fv.Table("space", axes="space")))
    fv.verify(model, plan=plan)  # dry runs at 64 px and at another size: a wrong plan is told here
    policy = fv.StaticTokens(frames=(4, 8, 16), sizes=(48, 64, 96))
    fv.make_flexible(model, policy=policy, plan=plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        spec = policy.sample(plan.base, seed=0, epoch=0, step=step)
        clip, label = torch.rand(2, 3, spec.frames, spec.height, spec.width), torch.tensor([1, 2])
        loss = nn.functional.cross_entropy(model(clip, patch=spec.patch), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        size = f"{spec.frames:2d} frames of {spec.height:2d} px, patch {spec.patch[0]:2d}"
        print(f"step {step}: {size}, loss {loss.item():.3f}")
    fv.restore(model)


if __name__ == "__main__":
    main()
