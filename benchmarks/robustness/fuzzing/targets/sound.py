"""Sounds of every common kind."""

from __future__ import annotations

import io
from collections.abc import Sequence

from fuzzing.targets._media import MediaTarget
from fuzzing.targets._shared import MEDIA


class Target(MediaTarget):
    keyword = "audio"

    def media(self) -> Sequence[bytes]:
        import numpy as np
        import soundfile

        found = [(MEDIA / name).read_bytes() for name in ("mono8k.wav", "float16k.wav", "deep22k.flac", "mono32k.mp3",
                                                          "stereo48k.ogg")]
        sound = np.sin(np.arange(1600) / 7).astype(np.float32) * 0.5
        forms = [("WAV", kind) for kind in ("PCM_16", "FLOAT", "ULAW", "IMA_ADPCM")]
        forms += [(form, "PCM_16") for form in ("AIFF", "AU", "CAF", "W64", "RF64")]
        for form, kind in forms:
            file = io.BytesIO()
            soundfile.write(file, sound, 16000, format=form, subtype=kind)
            found.append(file.getvalue())
        return found
