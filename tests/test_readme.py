"""The Python in the README runs as written, one block after another."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import flexvideo as fv
from flexvideo.cli import main

README = Path(__file__).parents[1] / "README.md"


def small(**sizes: int) -> fv.VideoMamba:
    return fv.VideoMamba(patch_size=8, depth=1, embed_dim=32, num_classes=5, **sizes).eval()


class Unsized(nn.Module):
    """A model that does not say for which size it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, kernel_size=16, stride=16)
        self.pos_embed = nn.Parameter(torch.zeros(1, 196, 8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patches(image).flatten(2).transpose(1, 2) + self.pos_embed


@pytest.mark.filterwarnings("ignore:.*upstream issue 70:flexvideo.errors.CheckpointWarning")
def test_python_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(small(img_size=112, num_frames=4).state_dict(), "videomamba_m16_k400_mask_ft_f16_res224.pth")
    fv.write_video("video.mp4", torch.randint(0, 255, (6, 40, 40, 3), dtype=torch.uint8))
    scope = {
        "other_model": small(img_size=32, num_frames=4),
        "my_model": Unsized(),
        "copy": small(img_size=112, num_frames=4),
        "criterion": nn.CrossEntropyLoss(),
        "labels": torch.tensor([3]),
        "batch_at": lambda spec: torch.rand(1, 3, spec.frames, spec.height, spec.width),
    }
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)
    assert scope["logits"].shape == (1, 5)
    assert scope["loss"].isfinite()
    assert scope["my_model"](torch.rand(1, 3, 128, 160)).shape == (1, 196, 8)
    assert "pos_embed" in capsys.readouterr().out


def test_every_example_is_listed():
    examples = {path.name for path in (README.parent / "examples").glob("*.py")}
    assert examples == set(re.findall(r"examples/(\w+\.py) ?[A-Z` ]*\|", README.read_text()))


def test_every_command_is_one():
    commands = re.findall(r"^flexvideo ([\w-]+)", README.read_text(), flags=re.MULTILINE)
    assert {"demo", "info", "features", "convert", "check-videos"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0


def test_pictures_exist():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text())
    assert pictures
    assert all((README.parent / picture).is_file() for picture in pictures)
