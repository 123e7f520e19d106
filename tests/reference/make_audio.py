"""Log-mel references: transformers' Gemma4AudioFeatureExtractor on the sounds of ``media`` (README)."""

from __future__ import annotations

import numpy as np
from media import SOUNDS
from reference_data import DATA, frame_indices
from torch_tools import check_versions
from transformers import Gemma4AudioFeatureExtractor

SHORT = (1, 2, 127, 128, 129, 159, 160, 161, 162, 255, 256, 319, 320, 321, 322, 479, 480, 481, 639, 640, 641, 799, 800,
         801, 961, 1279, 1280, 1281, 1599, 1600, 1601, 2560, 2721)
LONG = (8000, 16000, 16001, 48000, 98832, 160000, 479999, 480000, 480001, 500000)


def tokens(mask: np.ndarray) -> int:
    """Soft tokens as Gemma4Processor counts them: the mask through two strides of two."""
    return int(mask[::2][::2].sum())


def one(name: str, n: int) -> dict[str, np.ndarray]:
    """Sampled features of one clip alone: chosen frames, the mean of every frame, and the counts."""
    out = Gemma4AudioFeatureExtractor()([SOUNDS[name](n)], return_tensors="np")
    features, mask = out.input_features[0], out.input_features_mask[0]
    valid = int(mask.sum())
    assert features.dtype == np.float32 and mask[:valid].all() and not features[valid:].any()
    return {"shape": np.array([*features.shape, valid, tokens(mask)]), "frames": features[frame_indices(valid)],
            "frame_means": features[:valid].mean(1, dtype=np.float64).astype(np.float32)}


def main() -> None:
    """Write features.npz."""
    check_versions()
    data: dict[str, np.ndarray] = {}
    cases = [(name, n) for name in SOUNDS for n in (1600, 16000)] + [("noise", n) for n in SHORT]
    cases += [("speech", n) for n in LONG]
    for name, n in cases:
        for key, value in one(name, n).items():
            data[f"{name}:{n}:{key}"] = value
    np.savez_compressed(DATA / "features.npz", **data)
    for key, value in data.items():
        if key.endswith("shape"):
            print(key, value.tolist())


if __name__ == "__main__":
    main()
