"""Light and weather of one drive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# name, sun elevation range (degrees), sun strength, sky strength, cloud cover, haze per metre, wetness, darkness
_KINDS: tuple[tuple[str, tuple[float, float], float, float, float, float, float, float], ...] = (
    ("clear noon", (38, 58), 2.7, 0.75, 0.3, 0.0022, 0.0, 0.0),
    ("low sun", (16, 28), 2.5, 0.62, 0.4, 0.0030, 0.0, 0.0),
    ("partly cloudy", (30, 55), 2.0, 0.75, 0.6, 0.0030, 0.0, 0.0),
    ("overcast", (35, 55), 0.25, 1.25, 1.0, 0.0050, 0.0, 0.0),
    ("wet overcast", (35, 55), 0.15, 1.05, 1.0, 0.0085, 1.0, 0.1),
    ("haze", (25, 45), 0.9, 1.1, 0.8, 0.0105, 0.0, 0.0),
    ("dusk", (5, 9), 0.75, 0.42, 0.4, 0.0045, 0.0, 0.75),
)


@dataclass(frozen=True)
class Weather:
    """Light and weather; colours are linear RGB.

    Attributes:
        name: short description.
        towards_sun: unit vector.
        sun, sky, horizon, zenith: colours of direct light, of light from above, and of the sky itself.
        clouds: cover, 0 to 1.
        haze: extinction per metre.
        wetness: of the carriageway, 0 to 1.
        darkness: how many windows and lamps are lit, 0 to 1.
    """

    name: str
    towards_sun: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    horizon: np.ndarray
    zenith: np.ndarray
    clouds: float
    haze: float
    wetness: float
    darkness: float

    def row(self) -> np.ndarray:
        """The numbers the shading kernel needs, float64 (19,)."""
        scalars = [self.clouds, self.haze, self.wetness, self.darkness]
        return np.concatenate([self.towards_sun, self.sun, self.sky, self.horizon, self.zenith, scalars])


def draw_weather(rng: np.random.Generator, kind: int) -> Weather:
    """Light and weather number `kind` (any integer, they repeat), varied."""
    name, (low, high), sun, sky, clouds, haze, wetness, darkness = _KINDS[kind % len(_KINDS)]
    elevation, azimuth = math.radians(rng.uniform(low, high)), rng.uniform(0, 2 * math.pi)
    flat = math.cos(elevation)
    towards = np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
    warmth = np.clip(1.0 - elevation / math.radians(45), 0.0, 1.0)
    sun_colour = sun * np.array([1.0, 0.95 - 0.28 * warmth, 0.86 - 0.5 * warmth])
    grey = np.clip(1.6 * clouds - 0.6, 0.0, 1.0)
    zenith = sky * ((1 - grey) * np.array([0.26, 0.52, 1.05]) + grey * np.array([0.85, 0.88, 0.92]))
    horizon = sky * ((1 - grey) * np.array([1.15, 1.3, 1.45]) + grey * np.array([1.0, 1.01, 1.03]))
    if darkness > 0.5:
        zenith, horizon = sky * np.array([0.16, 0.22, 0.48]), sky * np.array([1.15, 0.72, 0.5])
    sky_colour = sky * ((1 - grey) * np.array([0.72, 0.84, 1.05]) + grey * np.array([0.97, 1.0, 1.03]))
    return Weather(name, towards, sun_colour, sky_colour, horizon, zenith, clouds, haze, wetness, darkness)
