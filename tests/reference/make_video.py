"""Video references: sampled frame indices and the text that replaces one video placeholder (see README.md)."""

from __future__ import annotations

import json
from types import SimpleNamespace

from reference_data import DATA
from torch_tools import check_versions
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

CASES = [(32, 24.0), (33, 30.0), (100, 30.0), (100, 29.97), (900, 25.0), (5000, 23.976), (3600, 0.5), (64, None),
         (1000, 60.0), (31, 24.0), (1, 10.0)]
WORDS = SimpleNamespace(boi_token="<|image>", eoi_token="<image|>", video_token="<|video|>")


def case(total: int, fps: float | None) -> dict[str, object]:
    """Indices of 32 frames and the replacement with two soft tokens a frame; the message where it refuses."""
    out: dict[str, object] = {"frames": total, "fps": fps}
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    try:
        sampler = SimpleNamespace(num_frames=32, fps=None)
        metadata.frames_indices = [int(i) for i in BaseVideoProcessor.sample_frames(sampler, metadata)]
    except ValueError as error:
        return out | {"error": str(error)[:120]}
    inputs = {"num_soft_tokens_per_video": [2], "video_metadata": [metadata]}
    return out | {"indices": metadata.frames_indices, "text": Gemma4Processor.replace_video_token(WORDS, inputs, 0)}


def main() -> None:
    """Write video.json."""
    check_versions()
    cases = [case(*c) for c in CASES]
    (DATA / "video.json").write_text(json.dumps(cases) + "\n")
    for c in cases:
        print(c["frames"], c["fps"], c.get("error") or (c["indices"], str(c["text"])[-60:]))


if __name__ == "__main__":
    main()
