"""Versions, releases and aliases (`Registry`), and what `--model RELEASE` stands for (`locate`). Light to import."""

from evergreen.registry.registry import Move, Pruned, Registry, locate, prompt_of, verdict_of
from evergreen.registry.versions import VersionRecord

__all__ = ["Move", "Pruned", "Registry", "VersionRecord", "locate", "prompt_of", "verdict_of"]
