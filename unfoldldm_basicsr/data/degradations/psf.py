"""Blur by convolution with a point spread function (PSF), borders reflected.

Images are float32 H W C, RGB or one channel, [0, 1]. Every PSF sums to 1 and is centred, so that
brightness and position are kept.
"""

import math

import cv2
import numpy as np


def gaussian_radius(sigma: float) -> int:
    """Support radius in pixels of a Gaussian PSF: four ``sigma``, as in scipy.ndimage."""
    return int(4 * sigma + 0.5)


def gaussian_psf(sigma: float, aspect: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Gaussian PSF exp(-x' C^-1 x / 2), sum 1: float32 of odd side ``2 * gaussian_radius(sigma) +
    1``.

    Args:
        sigma: standard deviation along the major axis, in pixels.
        aspect: minor divided by major standard deviation, in (0, 1]; 1 is isotropic.
        angle: direction of the major axis in degrees, counter-clockwise from horizontal.
    """
    radius, sigma = gaussian_radius(sigma), sigma or 1
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    major, minor = x * cos - y * sin, x * sin + y * cos  # rows grow downwards
    psf = np.exp(-0.5 * ((major / sigma) ** 2 + (minor / (sigma * aspect)) ** 2))
    return (psf / psf.sum()).astype(np.float32)


def motion_radius(length: float) -> int:
    """Support radius in pixels of a motion PSF of path length ``length``."""
    return math.ceil(length / 2) + 1


def motion_psf(
    length: float, angle: float = 0.0, bend: float = 0.0, *, fade: bool = False
) -> np.ndarray:
    """PSF of a camera that moves at constant speed along a straight line or a circular arc.

    Points along the path are splatted bilinearly, so length and angle act continuously.

    Args:
        length: length of the path in pixels.
        angle: direction of the path at its middle in degrees, counter-clockwise from horizontal.
        bend: total turn of the direction along the path in degrees; 0 is a straight line.
        fade: let the path begin and end softly (a raised cosine), as a streak of rain does.

    Returns:
        float32 array of odd side ``2 * motion_radius(length) + 1``, sum 1, centroid at its centre.
    """
    num_points = 8 * math.ceil(length) + 1
    arc = ((np.arange(num_points) + 0.5) / num_points - 0.5) * length
    turn = math.radians(bend)
    if abs(turn) < 1e-6 or length == 0:
        along, across = arc, np.zeros_like(arc)
    else:
        curvature_radius = length / turn
        along = curvature_radius * np.sin(arc / curvature_radius)
        across = curvature_radius * (1 - np.cos(arc / curvature_radius))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = along * cos - across * sin, -(along * sin + across * cos)  # rows grow downwards
    radius = motion_radius(length)
    x, y = x - x.mean() + radius, y - y.mean() + radius
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - left, y - top
    weight = 1 + np.cos(2 * np.pi * arc / length) if fade and length > 0 else np.ones_like(arc)
    psf = np.zeros((2 * radius + 1, 2 * radius + 1))
    np.add.at(psf, (top, left), weight * (1 - fx) * (1 - fy))
    np.add.at(psf, (top, left + 1), weight * fx * (1 - fy))
    np.add.at(psf, (top + 1, left), weight * (1 - fx) * fy)
    np.add.at(psf, (top + 1, left + 1), weight * fx * fy)
    return (psf / psf.sum()).astype(np.float32)


def convolve(image: np.ndarray, psf: np.ndarray) -> np.ndarray:
    """Convolution (not correlation) of every channel with ``psf``, borders reflected."""
    kernel, image = np.ascontiguousarray(psf[::-1, ::-1]), np.ascontiguousarray(image)
    blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return blurred.reshape(image.shape)  # OpenCV drops the axis of a single channel
