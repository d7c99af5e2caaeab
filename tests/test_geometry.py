import dataclasses
import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvideo import Base, ClipSpec, Geometry, geometry
from flexvideo.errors import FlexVideoError, GeometryError
from flexvideo.geometry import as_pair

SIDE = st.integers(1, 2000)


def test_docstring_examples_run() -> None:
    results = doctest.testmod(geometry)
    assert results.attempted > 0
    assert results.failed == 0


def test_base_of_the_paper() -> None:
    base = Base(frames=16, height=224, width=224, patch=(16, 16))
    assert base.grid == (14, 14)
    assert base.steps == 16


def test_base_of_an_image_model_has_no_steps() -> None:
    base = Base(frames=None, height=224, width=160, patch=(16, 16))
    assert base.steps is None
    assert base.grid == (14, 10)


def test_base_with_tubelets() -> None:
    assert Base(frames=16, height=224, width=224, patch=(16, 16), tubelet=2).steps == 8
    assert Base(frames=None, height=224, width=224, patch=(16, 16), tubelet=2).steps is None


@given(
    steps=st.integers(1, 128), height=SIDE, width=SIDE, patch=st.tuples(SIDE, SIDE), tubelet=st.integers(1, 4)
)
@settings(deadline=None, max_examples=100)
def test_tokens_count_the_windows_of_a_strided_convolution(
    steps: int, height: int, width: int, patch: tuple[int, int], tubelet: int
) -> None:
    patch = (min(patch[0], height), min(patch[1], width))
    run = Geometry(steps * tubelet, height, width, patch, tubelet)
    rows = len(range(0, height - patch[0] + 1, patch[0]))
    columns = len(range(0, width - patch[1] + 1, patch[1]))
    assert run.grid == (rows, columns)
    assert run.steps == steps
    assert run.tokens == steps * rows * columns
    assert Base(steps * tubelet, height, width, patch, tubelet).grid == run.grid


@pytest.mark.parametrize(
    "sizes", [Base(8, 96, 96, (8, 8)), ClipSpec(8, 96, 96, (8, 8)), Geometry(8, 96, 96, (8, 8))]
)
def test_sizes_are_frozen_hashable_values(sizes: Base | ClipSpec | Geometry) -> None:
    assert sizes == dataclasses.replace(sizes)
    assert hash(sizes) == hash(dataclasses.replace(sizes))
    assert sizes != dataclasses.replace(sizes, height=104)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sizes.height = 1


@pytest.mark.parametrize(
    ("frames", "tubelet", "nearest"), [(17, 2, "16 or 18"), (1, 2, "2"), (10, 4, "8 or 12"), (3, 4, "4")]
)
def test_frames_that_no_tubelet_divides_name_the_nearest_that_it_does(
    frames: int, tubelet: int, nearest: str
) -> None:
    text = f"^{frames} frames cannot be cut into tubelets of {tubelet} frames: use {nearest} frames.$"
    for sizes in (Base, Geometry):
        with pytest.raises(GeometryError, match=text):
            sizes(frames, 224, 224, (16, 16), tubelet)


@pytest.mark.parametrize("sizes", [Base, Geometry])
@pytest.mark.parametrize(
    ("height", "width", "patch"), [(8, 32, (16, 16)), (32, 15, (16, 16)), (32, 32, (0, 16))]
)
def test_a_frame_without_a_patch_is_refused(
    sizes: type[Base] | type[Geometry], height: int, width: int, patch: tuple[int, int]
) -> None:
    text = f"^A frame of {height} x {width} px holds no patch of {patch[0]} x {patch[1]} px"
    with pytest.raises(GeometryError, match=text):
        sizes(8, height, width, patch)


@pytest.mark.unchecked
@pytest.mark.parametrize("patch", [16, [16, 16], (16, 16)])
def test_the_patch_of_a_base_may_be_one_number_or_a_list(patch: object) -> None:
    base = Base(8, 96, 96, patch)
    assert base == Base(8, 96, 96, (16, 16))
    assert base.grid == (6, 6)
    assert isinstance(base.patch, tuple)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("frames", "height", "width", "tubelet") for value in (8.0, "8", (8, 8))),
        {"height": None},
        {"overlap": 0},
        {"stem": 0},
        {"stem": 2.0},
        {"patch": (16.0, 16)},
    ],
    ids=str,
)
def test_the_sizes_of_a_base_are_whole_numbers(change: dict[str, object]) -> None:
    sizes = {"frames": 8, "height": 96, "width": 96, "patch": (16, 16)} | change
    (name,) = change
    with pytest.raises(GeometryError, match=r"^The sizes of a Base are whole numbers") as error:
        Base(**sizes)
    assert f"{name}={change[name]!r}" in str(error.value)
    with pytest.raises(GeometryError, match=r"^`patch` must be a positive whole number .* got '16'\.$"):
        Base(8, 96, 96, "16")


@pytest.mark.parametrize(("frames", "tubelet"), [(0, 1), (-8, 1), (8, 0), (8, -1)])
def test_frames_and_tubelet_are_positive(frames: int, tubelet: int) -> None:
    for sizes in (Base, Geometry):
        with pytest.raises(
            GeometryError, match=f"at least 1, got {frames} frames and a tubelet of {tubelet}"
        ):
            sizes(frames, 224, 224, (16, 16), tubelet)


@pytest.mark.parametrize("field", ["frames", "height", "width"])
def test_a_spec_is_positive(field: str) -> None:
    sizes = {"frames": 8, "height": 96, "width": 96} | {field: 0}
    with pytest.raises(GeometryError, match=f"must be at least 1, got ClipSpec.*{field}=0"):
        ClipSpec(**sizes, patch=(16, 16))


def test_a_pair_from_a_number_a_tuple_and_a_list() -> None:
    assert as_pair(16) == as_pair((16, 16)) == as_pair([16, 16]) == (16, 16)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "value", [0, -16, 16.0, True, "16", (16,), (16, 16, 16), (16, 0), (16, 8.5), [], None]
)
def test_what_is_no_pair_is_refused_with_its_value(value: object) -> None:
    with pytest.raises(
        GeometryError, match="`patch` must be a positive whole number of pixels or a"
    ) as error:
        as_pair(value)
    assert str(error.value).endswith(f"got {value!r}.")
    assert isinstance(error.value, FlexVideoError)
    assert isinstance(error.value, ValueError)
