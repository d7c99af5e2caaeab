"""What a flexible patch embedding takes."""

import pytest
import torch
from hosts import BASE, HOSTS, ImageMamba, Stranger, clip, stranger_plan

import flexvideo as fv
from flexvideo.errors import GeometryError


@pytest.mark.unchecked
@pytest.mark.parametrize("size", [BASE, (4, 64, 64), (4, 7, 7)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
@pytest.mark.parametrize("host", [*HOSTS, "Linear", "images"])
def test_clip_of_another_dtype(host: str, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    """The same error at the base, at another patch, and where the clip must be resized first."""
    model, x = (HOSTS | {"Linear": Stranger, "images": ImageMamba})[host](), clip(size).to(dtype)
    fv.make_flexible(model, plan=stranger_plan() if host == "Linear" else None)
    x = {"Linear": x.transpose(1, 2), "images": x[:, :, 0]}.get(host, x)
    message = f"takes normalised clips of torch.float32, and this one holds {dtype}: give (.*)\\.$"
    with pytest.raises(GeometryError, match=message) as caught:
        model(x)
    remedy, _, where = (
        str(caught.value).removesuffix(".").partition(": give ")[2].partition(", where ImageNet's ")
    )
    names = {"torch": torch, "clip": x}
    exec(where, names)
    assert model(eval(remedy, names)).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        if dtype.is_floating_point:
            assert model(x).isfinite().all()
        else:
            with pytest.raises(GeometryError, match=message):
                model(x)
