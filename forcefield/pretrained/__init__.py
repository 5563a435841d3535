"""Weights that ship with the package; README.md beside this file is their card."""

from pathlib import Path

BACKBONE = Path(__file__).parent / "hegnn-general.safetensors"
"""General HEGNN for molecules of H, C, N, O, F, S and Cl, where training starts from by default."""
