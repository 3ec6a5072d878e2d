"""Upstream's checkpoint files of the parts that are built as there; all is called here as it is there."""

from __future__ import annotations

from distill.networks.adapter import Adapter

QPN = Adapter(names={}, layouts={}, give="give a query proposal network of MonoOcc for 16 layers, or none")
VIEWS = Adapter(names={}, layouts={}, give="give a cross-view transformer of MonoOcc with as many layers, or none")
