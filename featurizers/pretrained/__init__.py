"""Weights for features that ship with the package; README.md beside this file is their card."""

from pathlib import Path

from forcefield.pretrained import BACKBONE

DENOISING = Path(__file__).parent / "hegnn-denoising.safetensors"

WEIGHTS = {"general": BACKBONE, "denoising": DENOISING}
"""By name: those of the general potential, and those that were trained to remove noise."""
