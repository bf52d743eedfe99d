"""Scenes of the shapes world as pixels: background, shadows, colours and textures, and as files."""

import io

import numpy as np
from PIL import Image, ImageFilter

from fiber.data.shapes.outlines import Object
from fiber.data.shapes.scene import Scene, World, generator

RGB = {
    "red": (214, 40, 40),
    "orange": (247, 140, 22),
    "yellow": (247, 214, 40),
    "green": (46, 160, 67),
    "cyan": (60, 200, 214),
    "blue": (35, 92, 214),
    "purple": (140, 62, 176),
    "black": (34, 34, 38),
    "pink": (246, 140, 186),
    "white": (240, 240, 240),
    "teal": (24, 150, 150),
}


def paint(scene: Scene) -> np.ndarray:
    """The image, uint8 RGB (S, S, 3): background, soft shadows, objects, mild noise."""
    side = scene.world.image_size
    rng = generator(scene.key, "paint")
    canvas = _background(scene.world, rng)
    drop = max(1, round(0.02 * side))
    for obj, mask in zip(scene.objects, scene.masks, strict=True):
        shadow = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(drop))
        shade = np.zeros((side, side), np.float32)
        shade[drop:, drop:] = np.asarray(shadow, np.float32)[:-drop, :-drop] * (0.3 / 255)
        canvas *= 1 - shade[..., None]
        canvas += mask[..., None] * (_surface(obj, side, rng) - canvas)
    canvas += 2.5 * rng.standard_normal((side, side, 1), dtype=np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _background(world: World, rng: np.random.Generator) -> np.ndarray:
    """A tinted ground with slow changes of light, float32 (S, S, 3)."""
    side = world.image_size
    tint = np.array(world.backgrounds[rng.integers(len(world.backgrounds))], np.float32) + rng.uniform(-6, 6, 3)
    coarse = Image.fromarray(rng.uniform(-9, 9, (4, 4)).astype(np.float32))
    light = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return (tint + light[..., None]).astype(np.float32)


def _surface(obj: Object, side: int, rng: np.random.Generator) -> np.ndarray:
    """Colour of the object at every pixel, float32 (S, S, 3): lighter at the top, striped or dotted by texture."""
    colour = np.array(RGB[obj.colour], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    v = ((axis - obj.y) / obj.radius)[:, None]
    u = ((axis - obj.x) / obj.radius)[None]
    shade = (1.03 - 0.1 * v)[..., None] * colour
    if obj.texture == "plain":
        return np.broadcast_to(shade, (side, side, 3))
    light = colour @ np.array([0.299, 0.587, 0.114], np.float32) < 130
    ink = colour + 0.62 * (255 - colour) if light else 0.5 * colour
    turn = np.deg2rad(obj.angle + 45, dtype=np.float32)
    p, q = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    if obj.texture == "striped":
        cover = _edge(np.sin(p * 2 * np.pi / 0.62), obj.radius * side)
    elif obj.texture == "dotted":
        cover = _edge(np.cos(p * 2 * np.pi / 0.62) + np.cos(q * 2 * np.pi / 0.62) - 0.75, obj.radius * side)
    else:
        raise ValueError(f"no painter for texture {obj.texture!r}")
    return shade + cover[..., None] * (ink - shade)


def _edge(wave: np.ndarray, radius: float) -> np.ndarray:
    """A soft step of about one pixel at the zeros of a wave drawn on an object of this radius in pixels."""
    return np.clip(wave * radius / 10 + 0.5, 0, 1)


def encode(pixels: np.ndarray) -> tuple[str, bytes]:
    """PNG up to 64 pixels (every pixel counts there), JPEG of quality 95 without chroma subsampling above."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if max(pixels.shape[:2]) <= 64:
        image.save(buffer, "PNG", compress_level=1)
        return "png", buffer.getvalue()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return "jpg", buffer.getvalue()
