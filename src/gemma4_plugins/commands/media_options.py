"""The command class of ``generate`` and ``chat``, which list image and sound options even without their plugins."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gemma4_core.cli.plugin_options import PluginOptionsCommand


class MediaCommand(PluginOptionsCommand):
    """A command that takes media. Without a plugin for images, ``--image`` says so instead of being unknown."""

    expected_media: Mapping[str, str] = MappingProxyType({"--image": "images", "--audio": "audio"})
