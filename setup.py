"""The text of the package's index page: README.md, where links into the repository become plain file names.

Everything else about the package stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)([^)]+)\)")


def index_page() -> str:
    """README.md with ``[text](docs/page.md)`` written as ``docs/page.md``; such links lead nowhere on an index page."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    return RELATIVE_LINK.sub(r"`\2`", text)


setup(long_description=index_page(), long_description_content_type="text/markdown")
