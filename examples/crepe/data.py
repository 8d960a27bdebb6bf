"""Frames of generated sound for the pitch network, as torchcrepe prepares them.

Every recording is a tone with harmonics, glissando, vibrato and noise, made from a seed: nothing is
downloaded and nobody's voice is used. Recordings, not frames, are divided into the splits.
"""

from functools import cache

import numpy as np
import torch
from torch.utils.data import DataLoader

RATE = 16_000
WINDOW = 1024
RECORDINGS = {"train": (1, 120), "valid": (2, 40), "test": (3, 60)}  # seed, number
FRAMES = 5  # of each recording
UNVOICED = 0.1  # share of recordings that are noise alone


def recording(rng: np.random.Generator, seconds: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """One recording: samples, and the pitch in Hz at each of them (0 where there is none)."""
    time = np.arange(int(RATE * seconds)) / RATE
    octaves = rng.uniform(np.log2(60), np.log2(1200))
    glide = rng.normal(0, 0.4) * (time / seconds - 0.5)
    vibrato = rng.uniform(0, 0.04) * np.sin(2 * np.pi * rng.uniform(4, 8) * time + rng.uniform(0, 6))
    pitch = 2 ** (octaves + glide + vibrato)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE + rng.uniform(0, 6)

    tone = np.zeros_like(time)
    tilt, odd = rng.uniform(0.3, 2.0), rng.uniform(0.1, 1.0)
    peak, width = rng.uniform(300, 3000), rng.uniform(200, 1500)
    for harmonic in range(1, int(RATE / 2 / pitch.max()) + 1):
        loud = harmonic**-tilt * (odd if harmonic % 2 == 0 else 1.0)
        formant = 1 + 3 * np.exp(-(((harmonic * pitch.mean() - peak) / width) ** 2))
        tone += loud * formant * np.cos(harmonic * phase + rng.uniform(0, 6))

    noise = rng.normal(size=time.size)
    noise = noise + rng.uniform(0, 0.9) * np.roll(noise, 1)
    if rng.random() < UNVOICED:
        return noise, np.zeros_like(pitch)
    decibels = rng.uniform(5, 40)
    return tone / tone.std() + 10 ** (-decibels / 20) * noise / noise.std(), pitch


@cache
def frames(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (rows, 1024) with mean 0 and deviation 1, and the pitch in Hz at their middle (0: none)."""
    seed, number = RECORDINGS[split]
    rng = np.random.default_rng(seed)
    rows, pitches = [], []
    for _ in range(number):
        sound, pitch = recording(rng)
        for start in rng.integers(0, sound.size - WINDOW, FRAMES):
            rows.append(sound[start : start + WINDOW])
            pitches.append(pitch[start + WINDOW // 2])
    x = torch.from_numpy(np.stack(rows)).float()
    x = x - x.mean(dim=1, keepdim=True)
    return x / x.std(dim=1, keepdim=True).clamp(min=1e-10), torch.tensor(pitches)


def loader(split: str) -> DataLoader:
    x, _ = frames(split)
    return DataLoader(x, batch_size=60, shuffle=split == "train")
