"""Clips: animated pictures, and folders of frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from fuzzing.targets._media import MediaTarget


class Target(MediaTarget):
    keyword = "videos"

    def media(self) -> Sequence[bytes]:
        from PIL import Image

        frames = [Image.linear_gradient("L").resize((32, 24)).rotate(90 * n).convert("RGB") for n in range(5)]
        settings: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 100, "loop": 0}
        found = []
        for kind in ("GIF", "WEBP", "PNG"):
            file = io.BytesIO()
            frames[0].save(file, kind, **settings)
            found.append(file.getvalue())
        return found
