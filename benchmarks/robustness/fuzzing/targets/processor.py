"""processor_config.json and preprocessor_config.json, with a picture and a sound prepared as they say."""

from __future__ import annotations

import io
import json
import random
import wave
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._shared import plain, small_checkpoint
from fuzzing.values import mutate_json

NAMES = ("processor_config.json", "preprocessor_config.json")
IMAGE = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "patch_size": 16,
         "do_normalize": False, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "max_soft_tokens": 70,
         "pooling_kernel_size": 3, "resample": 3, "image_seq_length": 280, "size": {"height": 224, "width": 224},
         "image_processor_type": "Gemma4ImageProcessor"}
SOUND = {"sampling_rate": 16000, "feature_size": 128, "frame_length": 320, "hop_length": 160, "fft_length": 512,
         "min_frequency": 0.0, "max_frequency": 8000.0, "preemphasis": 0.0, "mel_floor": 0.001, "fft_overdrive": False,
         "dither": 0.0, "input_scale_factor": 1.0, "padding_value": 0.0, "per_bin_mean": None, "per_bin_stddev": None,
         "feature_extractor_type": "Gemma4AudioFeatureExtractor", "frame_length_ms": 20.0, "hop_length_ms": 10.0}
WORDS = tuple(sorted({*IMAGE, *SOUND, "image_processor", "feature_extractor", "video_processor", "audio_seq_length",
                      "audio_ms_per_token", "num_frames", "fps"}))


@lru_cache
def media() -> tuple[bytes, bytes]:
    """A small picture and a short sound."""
    from PIL import Image

    picture, sound = io.BytesIO(), io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(picture, "PNG")
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(range(256)) * 12)
    return picture.getvalue(), sound.getvalue()


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        from tiny_model import tiny_config

        files = {name: content for name, content in small_checkpoint().items() if name != "model.safetensors"}
        files["config.json"] = plain(tiny_config())
        whole = {"processor_class": "Gemma4Processor", "image_processor": IMAGE, "feature_extractor": SOUND,
                 "video_processor": {**IMAGE, "num_frames": 4}, "audio_seq_length": 750, "audio_ms_per_token": 40}
        return [{**files, NAMES[0]: plain(whole)}, {**files, NAMES[1]: plain({**IMAGE, **SOUND})},
                {**files, NAMES[0]: plain({"image_processor": {"max_soft_tokens": 70}})}]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        if rng.random() < 0.04:
            return mutate_files(rng, sample, NAMES)
        name = rng.choice([name for name in NAMES if name in sample] or [*NAMES])
        return {**sample, name: mutate_json(rng, sample.get(name, b"{}"), WORDS)}

    def run(self, folder: Path) -> None:
        from gemma4_core import GemmaMultimodalProcessor
        from gemma4_core.errors import Gemma4Error

        processor = GemmaMultimodalProcessor.from_pretrained(folder)
        picture, sound = media()
        faults = []
        for kind, value in (("images", [picture]), ("audio", [sound])):
            try:
                prepared = processor.prepare_inputs("Look.", **{kind: value})
                json.dumps(prepared.input_ids)
            except Gemma4Error as fault:
                faults.append(fault)
        if faults:
            raise faults[0]
