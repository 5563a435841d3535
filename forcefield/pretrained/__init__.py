"""Weights that ship with the package; README.md beside this file is their card."""

from pathlib import Path

BACKBONE = Path(__file__).parent / "hegnn-general.safetensors"
"""General HEGNN for molecules of H, C, N, O, F, S and Cl, where training starts from by default."""

LARGE = Path(__file__).parent / "hegnn-general-large.safetensors"
"""The same for a larger network: lower errors, two to three times the time."""
