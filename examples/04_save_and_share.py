"""Train a flexible model, save it with its policy, its rule and its labels, and have it back in one line.

    python examples/04_save_and_share.py FOLDER [--repo OWNER/NAME]

With --repo the model goes to the Hugging Face Hub too, with the token of `hf auth login` or HF_TOKEN.
"""

import argparse

import torch

import flexvideo as fv

SIZES = [(4, 32, 32), (8, 48, 48), (6, 40, 24)]  # frames, height, width


def main(folder: str, repo: str | None = None, steps: int = 3) -> None:
    """Save, load and compare; the folder, and the repository, hold all that `fv.load` needs."""
    model = fv.VideoMamba(img_size=32, patch_size=8, depth=2, embed_dim=32, num_classes=2, num_frames=4)
    policy = fv.FlexAll(frames=(4, 8), sizes=(32, 48), patch_range=(6, 12))
    base = fv.plan_for(model).base
    fv.make_flexible(model, policy=policy, rule="pi")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        spec = policy.sample(base, seed=0, epoch=0, step=step)
        clip, label = torch.rand(2, 3, spec.frames, spec.height, spec.width), torch.tensor([0, 1])
        loss = torch.nn.functional.cross_entropy(model(clip, patch=spec.patch), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().labels = ("run", "jump")

    model.save_pretrained(folder)  # config.json, model.safetensors, README.md
    places = [folder]
    if repo is not None:
        print(f"pushed: {model.push_to_hub(repo)}")
        places.append(repo)
    for place in places:
        again = fv.load(place)  # anywhere: flexible, with policy, rule and labels
        clips = [torch.rand(1, 3, *size) for size in SIZES]
        same = all(torch.equal(again(clip), model(clip)) for clip in clips)
        print(f"{again.source}: {fv.flex_config(again)['policy']['name']}, {again.labels}, same bits: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--repo", metavar="OWNER/NAME")
    options = parser.parse_args()
    main(options.folder, options.repo)
