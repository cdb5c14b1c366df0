"""Depth, edge and pose pictures of a scene, in the form that ControlNets read; made only when asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from costars_world.world2.render.scene import RenderedScene
from costars_world.world2.render.skeleton import Keypoints

_ZOOM = 3  # pose pictures are drawn at this multiple and reduced

# Limbs with the colours of OpenPose; an animal's paws hang from its neck.
_LIMBS: Sequence[tuple[str, str, tuple[int, int, int]]] = (
    ("neck", "right_shoulder", (255, 0, 0)),
    ("neck", "left_shoulder", (255, 85, 0)),
    ("right_shoulder", "right_elbow", (255, 170, 0)),
    ("right_elbow", "right_wrist", (255, 255, 0)),
    ("left_shoulder", "left_elbow", (170, 255, 0)),
    ("left_elbow", "left_wrist", (85, 255, 0)),
    ("neck", "right_hip", (0, 255, 0)),
    ("right_hip", "right_knee", (0, 255, 85)),
    ("right_knee", "right_ankle", (0, 255, 170)),
    ("neck", "left_hip", (0, 255, 255)),
    ("left_hip", "left_knee", (0, 170, 255)),
    ("left_knee", "left_ankle", (0, 85, 255)),
    ("neck", "nose", (0, 0, 255)),
    ("nose", "right_eye", (85, 0, 255)),
    ("right_eye", "right_ear", (170, 0, 255)),
    ("nose", "left_eye", (255, 0, 255)),
    ("left_eye", "left_ear", (255, 0, 170)),
)
_PAW_LIMBS: Sequence[tuple[str, str, tuple[int, int, int]]] = (
    ("neck", "right_wrist", (255, 170, 0)),
    ("neck", "left_wrist", (170, 255, 0)),
    ("neck", "right_ankle", (0, 255, 85)),
    ("neck", "left_ankle", (0, 170, 255)),
)
_EDGE_THRESHOLD = 70.0  # of the Sobel gradient of luminance, 0 to 1020 per axis


def depth_map(scene: RenderedScene) -> NDArray[np.float32]:
    """Nearness of every pixel, (height, width) in [0, 1]: 1 is nearest, 0 the sky; nearer figures are larger."""
    height, width = scene.ids.shape
    rows = np.arange(height, dtype=np.float32)[:, None]
    ground = np.where(rows >= scene.horizon_px, _nearness(rows, scene), 0.0)
    depth = np.broadcast_to(ground, (height, width)).astype(np.float32)
    grounds = _nearness(np.asarray(scene.ground_px, dtype=np.float32), scene)
    for i, figure in enumerate(scene.figures):
        # The rank separates figures that stand on one line, such as a car and its rider.
        depth[scene.ids == i + 1] = grounds[i] - 0.01 * figure.depth
    return depth


def depth_picture(scene: RenderedScene) -> Image.Image:
    """The depth map as an RGB picture: white is nearest."""
    grey = np.round(depth_map(scene) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def edge_picture(image: Image.Image) -> Image.Image:
    """White edges on black: Sobel gradients of luminance, thinned to their maxima."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    padded = np.pad(grey, 1, mode="edge")
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    gx = smooth[:, 2:] - smooth[:, :-2]
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    gy = smooth[2:] - smooth[:-2]
    strength = np.hypot(gx, gy)
    around = np.pad(strength, 1)
    level = (strength >= around[1:-1, :-2]) & (strength > around[1:-1, 2:])
    upright = (strength >= around[:-2, 1:-1]) & (strength > around[2:, 1:-1])
    thin = np.where(np.abs(gx) >= np.abs(gy), level, upright)
    edges = (thin & (strength > _EDGE_THRESHOLD)).astype(np.uint8) * 255
    return Image.fromarray(edges).convert("RGB")


def pose_picture(scene: RenderedScene) -> Image.Image:
    """The skeletons of all figures with limbs, coloured as by OpenPose, on black; far figures first."""
    width, height = scene.image.size
    picture = Image.new("RGB", (width * _ZOOM, height * _ZOOM))
    draw = ImageDraw.Draw(picture)
    for figure in sorted(scene.figures, key=lambda figure: -figure.depth):
        if "neck" in figure.keypoints:
            _draw_skeleton(draw, figure.keypoints)
    return picture.reduce(_ZOOM)


def _draw_skeleton(draw: ImageDraw.ImageDraw, points: Keypoints) -> None:
    limbs = _LIMBS if "right_shoulder" in points or "left_shoulder" in points else (*_LIMBS, *_PAW_LIMBS)
    radius = 1.6 * _ZOOM
    for first, second, colour in limbs:
        if first in points and second in points:
            ends = [(x * _ZOOM, y * _ZOOM) for x, y in (points[first], points[second])]
            draw.line(ends, fill=colour, width=round(2.2 * _ZOOM))
            for x, y in ends:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _nearness(y: NDArray[np.float32], scene: RenderedScene) -> NDArray[np.float32]:
    """How near the ground is at rows of the picture, from 0.2 at the horizon to 0.95 at the lower edge."""
    share = (y - scene.horizon_px) / (scene.ids.shape[0] - scene.horizon_px)
    near: NDArray[np.float32] = 0.2 + 0.75 * np.clip(share, 0.0, 1.0)
    return near
