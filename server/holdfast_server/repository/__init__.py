"""Accepts packs, reads ranges, commits snapshots."""

from __future__ import annotations

from holdfast_server.repository.repository import Repository

__all__ = ["Repository"]
