"""Labelled geometries for training: read, checked, divided. Everything comes out in eV and Å."""

from training.datasets.frames import Frame, Reading, Split, data_hash
from training.datasets.load import load_split, read_frames
from training.datasets.options import ReadOptions

__all__ = ["Frame", "ReadOptions", "Reading", "Split", "data_hash", "load_split", "read_frames"]
