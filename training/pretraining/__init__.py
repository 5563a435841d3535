"""Pretraining of the general backbone: molecules, GFN2-xTB labels, training on several levels of theory.

    python -m training.pretraining.molecules ...   geometries to start from
    python -m training.pretraining.labels ...      GFN2-xTB energies and forces along hot trajectories
    python -m training.pretraining.backbone ...    the training itself

The recipe that made the weights in the package, with its data, stands beside them, in
forcefield/pretrained/README.md.
"""
