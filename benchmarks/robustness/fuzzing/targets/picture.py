"""Pictures of every common kind."""

from __future__ import annotations

import io
from collections.abc import Sequence

from fuzzing.targets._media import MediaTarget
from fuzzing.targets._shared import MEDIA


class Target(MediaTarget):
    keyword = "images"

    def media(self) -> Sequence[bytes]:
        from PIL import Image

        found = [(MEDIA / name).read_bytes() for name in ("alpha.webp", "cmyk.jpg", "progressive.jpg", "turned.jpg")]
        grey = Image.linear_gradient("L").resize((40, 30))
        for mode, kind in (("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("P", "GIF"),
                           ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGB", "PPM"),
                           ("RGBA", "TGA"), ("RGBA", "ICO")):
            file = io.BytesIO()
            grey.convert("I;16" if mode == "I;16" else mode).save(file, kind)
            found.append(file.getvalue())
        return found
