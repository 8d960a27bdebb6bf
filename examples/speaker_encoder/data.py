"""Mel spectra of generated voices for the speaker encoder, as Resemblyzer computes them.

A voice is a source (pulses of its pitch, breath) filtered by the formants of a vocal tract of its size;
an utterance is a sequence of vowels and noisy consonants. All of it is made from a seed: nothing is
downloaded and nobody's voice is used. Voices, not utterances, are divided into the splits.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

RATE = 16_000
FFT, HOP, MELS, FRAMES = 400, 160, 40, 160
VOICES = {"train": (1, 60), "valid": (2, 20), "test": (3, 30)}  # seed, number
UTTERANCES = 6  # of each voice
# the first three formants of ten vowels in Hz (Peterson and Barney 1952, men)
VOWELS = np.array(
    [
        (270, 2290, 3010),
        (390, 1990, 2550),
        (530, 1840, 2480),
        (660, 1720, 2410),
        (730, 1090, 2440),
        (570, 840, 2410),
        (440, 1020, 2240),
        (300, 870, 2240),
        (640, 1190, 2390),
        (490, 1350, 1690),
    ]
)


def mel_filters() -> Tensor:
    """Slaney's triangular filters of equal area, 0 to 8 kHz, shape (40, 201)."""
    # linear up to 1 kHz, then 27 steps for a factor of 6.4
    step = np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / step
    mels = np.linspace(0, top, MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def mel_spectrum(sound: Tensor) -> Tensor:
    """Power in 40 mel bands every 10 ms (not its logarithm), shape (frames, 40)."""
    window = torch.hann_window(FFT)
    spectrum = torch.stft(sound, FFT, HOP, window=window, pad_mode="constant", return_complex=True)
    return (mel_filters() @ spectrum.abs().square()).T


def louder(sound: Tensor, decibels: float = -30.0) -> Tensor:
    """Raise the level to ``decibels`` of full scale; a louder sound stays as it is."""
    level = sound.square().mean().sqrt()
    return sound * max(1.0, 10 ** (decibels / 20) / float(level))


class Voice:
    """What is constant over the utterances of one speaker."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.pitch = 2 ** rng.uniform(np.log2(80), np.log2(260))
        self.tract = rng.uniform(0.85, 1.2) * (1 + 0.1 * (self.pitch > 165))  # factor on the formants
        self.vowels = VOWELS * rng.normal(1, 0.06, VOWELS.shape) * self.tract
        self.upper = np.array([3500, 4500, 5500]) * rng.normal(1, 0.05, 3) * self.tract
        self.bandwidth = rng.uniform(0.7, 1.6)
        self.tilt = rng.uniform(6, 15)  # decibels an octave
        self.breath = 10 ** rng.uniform(-2.5, -0.8)
        self.tempo = rng.uniform(5, 9)  # sounds a second
        self.tune = rng.uniform(0.03, 0.15)  # octaves the pitch moves

    def utterance(self, rng: np.random.Generator, seconds: float = 1.8) -> Tensor:
        """Samples at 16 kHz."""
        count = int(RATE * seconds)
        formants, voiced, loud = self._sounds(rng, count // 128 + 1)
        time = np.arange(count) / RATE
        melody = self.tune * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time + rng.uniform(0, 6)) - 0.1 * time
        drift = np.cumsum(rng.normal(0, 2e-4, count))
        phase = np.cumsum(self.pitch * 2 ** (melody + drift)) / RATE
        pulses = np.diff(np.floor(phase), prepend=0.0) * np.sqrt(RATE / self.pitch)
        breath = rng.normal(size=count)
        envelope = self._envelope(formants)
        hiss = np.linspace(0.1, 1, 257)[:, None] ** 2
        sound = _filtered(pulses, envelope * (voiced * loud)) + _filtered(
            breath, envelope * self.breath * loud + hiss * 0.3 * (1 - voiced) * loud
        )
        return sound / sound.abs().max() * float(rng.uniform(0.05, 0.5))

    def _sounds(self, rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Formants (steps, 6), and how voiced and how loud each step of 8 ms is."""
        formants, voiced, loud = [], [], []
        while len(loud) < steps:
            length = max(4, int(rng.normal(1, 0.2) * RATE / 128 / self.tempo))
            consonant = rng.random() < 0.35
            pause = rng.random() < 0.05
            vowel = np.concatenate([self.vowels[rng.integers(len(VOWELS))], self.upper])
            formants += [vowel] * length
            voiced += [0.0 if consonant else 1.0] * length
            loud += [0.0 if pause else rng.uniform(0.3, 1)] * length
        smooth = np.hanning(9) / np.hanning(9).sum()
        columns = [
            np.convolve(np.pad(c, 4, mode="edge"), smooth, mode="valid")[:steps]
            for c in (*np.array(formants).T, np.array(voiced), np.array(loud))
        ]
        return np.stack(columns[:-2], axis=1), columns[-2], columns[-1]

    def _envelope(self, formants: np.ndarray) -> np.ndarray:
        """Gain of the vocal tract at 257 frequencies for every step, shape (257, steps)."""
        hertz = np.linspace(0, RATE / 2, 257)[:, None, None]
        band = self.bandwidth * (50 + formants * 0.04)
        resonances = 1 / np.abs(1 - (hertz / formants) ** 2 + 1j * hertz * band / formants**2)
        source = 10 ** (-self.tilt / 20 * np.log2(np.maximum(hertz[:, :, 0], 100) / 100))
        return np.prod(resonances, axis=2) ** 0.7 * source


def _filtered(source: np.ndarray, gain: np.ndarray) -> Tensor:
    """Multiply the short-time spectrum of a source by a gain of shape (257, steps)."""
    window = torch.hann_window(512)
    spectrum = torch.stft(torch.from_numpy(source).float(), 512, 128, window=window, return_complex=True)
    spectrum *= torch.from_numpy(gain[:, : spectrum.shape[1]]).float()
    return torch.istft(spectrum, 512, 128, window=window, length=len(source))


@cache
def voices(split: str) -> tuple[Tensor, Tensor]:
    """Spectra (rows, 160, 40) and the number of the voice of each."""
    seed, number = VOICES[split]
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        voice = Voice(rng)
        rows += [mel_spectrum(louder(voice.utterance(rng)))[:FRAMES] for _ in range(UTTERANCES)]
    return torch.stack(rows), torch.arange(number).repeat_interleave(UTTERANCES)


def loader(split: str) -> DataLoader:
    x, _ = voices(split)
    return DataLoader(x, batch_size=60, shuffle=split == "train")
