"""The renderer: any size, edges without steps, the nearer thing in front, the same frame whoever asks."""

import dataclasses
from random import Random

import pytest
import torch

import flexvideo.data.render as module
from flexvideo.data.actions import rest_pose
from flexvideo.data.look import Camera, draw_look
from flexvideo.data.motion import MotionSet, frame_times
from flexvideo.data.render import render
from flexvideo.data.scene import CAPSULES, Scene, build_scene
from flexvideo.data.skeleton import Body, pose_joints
from flexvideo.data.view import view_of


def still(*, camera: Camera | None = None, seed: int = 0) -> Scene:
    look = dataclasses.replace(draw_look(Random(seed)), camera=camera or Camera())
    joints = pose_joints(rest_pose()[None], Body())
    return build_scene(joints, look, focus=torch.zeros(1, 3).double(), times=torch.zeros(1).double()).to(
        "cpu"
    )


def only(scene: Scene, spheres: list[tuple[float, float, float, float]], colours: list[list[float]]) -> Scene:
    """The scene with its figure replaced by spheres (x, y, z, radius)."""
    ends, radii, paint = scene.ends.clone(), torch.full_like(scene.radii, -1.0), scene.colours.clone()
    for k, (sphere, colour) in enumerate(zip(spheres, colours, strict=True), start=6):
        ends[:, k], radii[:, k] = torch.tensor(sphere[:3]), sphere[3]
        paint[:, k] = torch.tensor(colour)
    return dataclasses.replace(scene, ends=ends, radii=radii, colours=paint)


@pytest.mark.parametrize(("frames", "size"), [(1, 8), (3, (33, 17)), (2, (17, 90)), (5, 64), (2, (8, 200))])
@pytest.mark.parametrize("kind", ["short", "long"])
def test_any_frame_count_and_size(kind, frames, size):
    drawn = MotionSet("test", kind=kind).sample(8, frames=frames, size=size)
    shape = (size, size) if isinstance(size, int) else size
    assert drawn.shape == (frames, *shape, 3)
    assert drawn.dtype == torch.uint8
    assert drawn.float().std() > 10


@pytest.mark.parametrize("index", range(18))
def test_every_action_is_visible_and_finite(index, monkeypatch):
    """The float image is finite before it is rounded, and something moves."""
    seen = []
    paint = module._paint_figure

    def spy(scene: Scene, view: object, canvas: torch.Tensor) -> None:
        paint(scene, view, canvas)
        seen.append(canvas.clone())

    monkeypatch.setattr(module, "_paint_figure", spy)
    frames = MotionSet("val", seed=1).sample(index, frames=6, size=48).int()
    assert all(canvas.isfinite().all() for canvas in seen)
    assert (frames[0] - frames[3]).abs().max() > 60


def test_a_frame_does_not_depend_on_its_neighbours():
    """Frame 3i+1 of 12 lies at the same instant as frame i of 4: the same bytes."""
    clips = MotionSet("train", seed=9)
    few, many = (clips.sample(4, frames=n, size=56) for n in (4, 12))
    assert torch.equal(few, many[1::3])


def test_chunks_do_not_change_the_bytes(monkeypatch):
    clips = MotionSet("train", seed=9)
    whole = clips.sample(11, frames=6, size=40)
    monkeypatch.setitem(module._PIXELS, "cpu", 1)
    assert torch.equal(whole, clips.sample(11, frames=6, size=40))


def test_clips_drawn_together_are_the_clips_drawn_alone():
    clips = MotionSet("train", seed=5)
    together = clips.batch([0, 8, 10], frames=3, size=(32, 40))
    for k, index in enumerate((0, 8, 10)):
        assert torch.equal(together[k], clips.sample(index, frames=3, size=(32, 40)))


@pytest.mark.parametrize("index", [1, 9, 12])
def test_small_frames_are_what_large_ones_average_to(index):
    """Anti-aliasing: drawing at 48 and averaging 192 down to 48 agree, closely on average."""
    clips = MotionSet("train", seed=2)
    small = clips.sample(index, frames=3, size=48).float()
    large = (
        clips.sample(index, frames=3, size=192)
        .float()
        .unflatten(1, (48, 4))
        .unflatten(3, (48, 4))
        .mean((2, 4))
    )
    assert (small - large).abs().mean() < 2.0


def test_an_edge_passes_smoothly_when_a_sphere_moves_by_parts_of_a_pixel():
    """The light that a ball sends is the same wherever its edge cuts the pixels, within half a percent."""
    base = still(camera=Camera(height=1.0, target=1.0))
    metres_per_pixel = 6.0 / (float(base.focal[0]) * 64)
    totals = []
    for part in torch.linspace(0, 1, 9):
        ball = [(float(part) * metres_per_pixel, 1.0, 0.0, 0.3)]
        lit, unlit = (render(only(base, ball, [[c, c, c]]), (64, 64)).float() for c in (0.9, 0.0))
        totals.append(float((lit - unlit).sum()))
    assert max(totals) - min(totals) < 0.005 * totals[0]


def test_the_nearer_sphere_hides_the_other():
    base = still()
    red, green = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    for order in ((0.5, -0.5), (-0.5, 0.5)):
        scene = only(base, [(0.0, 1.0, order[0], 0.3), (0.0, 1.0, order[1], 0.3)], [red, green])
        centre = render(scene, (64, 64))[0, 32, 32].int()
        near = 0 if order[0] > order[1] else 1
        assert centre[near] > 90
        assert centre[1 - near] == 0


def test_what_is_not_there_covers_nothing():
    base = still()
    empty = dataclasses.replace(base, radii=torch.full_like(base.radii, -1.0))
    away = dataclasses.replace(empty, ends=base.ends + 100.0)
    assert torch.equal(render(empty, (40, 40)), render(away, (40, 40)))
    assert base.radii.shape[1] == CAPSULES


def test_the_figure_darkens_the_floor_where_it_stands():
    base = still()
    empty = dataclasses.replace(base, radii=torch.full_like(base.radii, -1.0))
    floor = slice(90, 128)
    with_figure, without = (render(scene, (128, 128)).float()[0, floor] for scene in (base, empty))
    darker = (without - with_figure).amax(-1) > 8
    assert 0.01 < darker.float().mean() < 0.4


def test_the_camera_looks_at_its_target():
    view = view_of(still(camera=Camera(height=2.0, target=1.0)), (64, 64))
    for axis in (view.right, view.up, view.forward):
        torch.testing.assert_close(axis.norm(dim=1), torch.ones(1))
    to_target = torch.tensor([[0.0, 1.0, 0.0]]) - still(camera=Camera(height=2.0, target=1.0)).eye
    torch.testing.assert_close(to_target / to_target.norm(), view.forward, atol=1e-5, rtol=0)
    assert (view.up[:, 1] > 0.9).all()


def test_looks_vary_and_repeat():
    assert draw_look(Random(1)) == draw_look(Random(1))
    assert len({draw_look(Random(seed)).colours for seed in range(50)}) == 50


@pytest.mark.gpu
def test_a_gpu_draws_the_same_picture():
    clips = MotionSet("train", seed=0)
    indices = range(18)
    cpu = clips.batch(indices, frames=4, size=96).int()
    gpu = clips.batch(indices, frames=4, size=96, device="cuda").cpu().int()
    difference = (cpu - gpu).abs()
    assert (difference > 1).float().mean() < 1e-3
    assert frame_times(1.0, 2).tolist() == [0.25, 0.75]
