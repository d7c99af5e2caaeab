"""How a clip looks: body colours, floor, wall, light and camera, drawn from a random number generator."""

import colorsys
import math
from dataclasses import dataclass
from random import Random

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A camera which follows the figure: metres; `view` is the height of the square that it shows.

    `drift` (yaw degrees, metres sideways, metres up, hertz, phase) is its slow motion.
    """

    distance: float = 6.0
    height: float = 1.6
    view: float = 2.5
    target: float = 0.98
    drift: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.1, 0.0)


@dataclass(frozen=True)
class Look:
    """Everything visible that is not motion. Colours are RGB in [0, 1].

    `colours` are in the order of `COLOURS`, `light` points towards the light. `tiles`: size in metres, angle
    in degrees, offsets. `wall`: per wave, two frequencies, two phases (radians per metre) and a colour.
    """

    camera: Camera
    colours: tuple[Colour, ...]
    girth: float
    light: tuple[float, float, float]
    floor: tuple[Colour, Colour]
    tiles: tuple[float, float, float, float]
    backdrop: Colour
    wall: tuple[tuple[float, float, float, float, Colour], ...]
    wall_distance: float


COLOURS = ("shirt", "trousers", "skin", "hair", "shoes", "sleeve", "shin", "prop", "eye")
_SKINS = ((0.95, 0.78, 0.66), (0.87, 0.66, 0.51), (0.73, 0.52, 0.37), (0.55, 0.36, 0.25), (0.40, 0.26, 0.18))
_HAIRS = ((0.10, 0.08, 0.07), (0.25, 0.15, 0.09), (0.45, 0.28, 0.14), (0.72, 0.55, 0.28), (0.55, 0.54, 0.53))
_WAVES = 7


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def draw_look(rng: Random, *, girth: float = 1.0) -> Look:
    """A random look.

    Args:
        rng: source of every choice.
        girth: thickness of the limbs.

    Example:
        >>> draw_look(Random(0)) == draw_look(Random(0))
        True
    """
    room, bright = rng.random(), rng.uniform(0.45, 0.88)
    backdrop = _hsv(room, rng.uniform(0.05, 0.35), bright)
    floor_hue, floor_value = rng.random(), rng.uniform(0.35, 0.75)
    contrast, saturation = rng.uniform(0.08, 0.2), rng.uniform(0.02, 0.25)
    return Look(
        camera=_draw_camera(rng),
        colours=_draw_clothes(rng),
        girth=girth,
        light=_draw_light(rng),
        floor=(
            _hsv(floor_hue, saturation, floor_value - contrast),
            _hsv(floor_hue, saturation, floor_value + contrast),
        ),
        tiles=(rng.uniform(0.35, 0.7), rng.uniform(0, 90), rng.random(), rng.random()),
        backdrop=backdrop,
        wall=tuple(_draw_wave(rng, room) for _ in range(_WAVES)),
        wall_distance=rng.uniform(2.5, 5.0),
    )


def _draw_camera(rng: Random) -> Camera:
    drift = (
        rng.uniform(0, 3),
        rng.uniform(0, 0.06),
        rng.uniform(0, 0.03),
        rng.uniform(0.06, 0.2),
        rng.random(),
    )
    return Camera(
        distance=rng.uniform(5.0, 7.5),
        height=rng.uniform(1.1, 2.3),
        view=rng.uniform(2.4, 2.8),
        target=rng.uniform(0.95, 1.05),
        drift=drift,
    )


def _draw_clothes(rng: Random) -> tuple[Colour, ...]:
    hue = rng.random()
    shirt = _hsv(hue, rng.uniform(0.45, 0.9), rng.uniform(0.45, 0.95))
    trousers = _hsv(hue + rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.75))
    skin, hair = rng.choice(_SKINS), rng.choice(_HAIRS)
    shoes = _hsv(rng.random(), rng.uniform(0, 0.6), rng.choice((0.15, 0.3, 0.9)))
    sleeve = skin if rng.random() < 0.6 else shirt
    shin = skin if rng.random() < 0.2 else trousers
    prop = _hsv(rng.random(), rng.uniform(0.6, 0.95), rng.uniform(0.65, 1.0))
    return (shirt, trousers, skin, hair, shoes, sleeve, shin, prop, (0.06, 0.05, 0.06))


def _draw_light(rng: Random) -> tuple[float, float, float]:
    """Direction towards the light: up, in front of the figure, from either side."""
    side, height = math.radians(rng.uniform(-60, 60)), math.radians(rng.uniform(40, 70))
    return math.sin(side) * math.cos(height), math.sin(height), math.cos(side) * math.cos(height)


def _draw_wave(rng: Random, hue: float) -> tuple[float, float, float, float, Colour]:
    """One separable cosine of the wall pattern, wavelengths from 1.2 m up."""
    tint = _hsv(hue + rng.uniform(-0.25, 0.25), rng.uniform(0, 0.8), 1.0)
    strength = rng.uniform(0.02, 0.07) * rng.choice((-1, 1))
    colour = (strength * tint[0], strength * tint[1], strength * tint[2])
    turn = 2 * math.pi
    return rng.uniform(0.2, 4.0), rng.uniform(0.2, 4.0), turn * rng.random(), turn * rng.random(), colour
