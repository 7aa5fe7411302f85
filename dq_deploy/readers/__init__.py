"""Fake-quant checkpoints of other projects become records; the words of their files end in this package."""

from __future__ import annotations

from dq_deploy.readers.channel_factors import CHOICES
from dq_deploy.readers.conversion import READERS, import_checkpoint
from dq_deploy.readers.settings import Settings, load_settings, settings_from

__all__ = ["CHOICES", "READERS", "Settings", "import_checkpoint", "load_settings", "settings_from"]
