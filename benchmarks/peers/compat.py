"""Lets two packages load beside a torch newer than they know; import it before them."""

import os
import typing

import torch.utils.data.dataloader

# e3nn 0.4, which MACE needs, reads a table of its own in a way that torch >= 2.6 refuses by default.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

# SchNetPack 2.1 imports this name, which torch no longer has.
if not hasattr(torch.utils.data.dataloader, "T_co"):
    torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)
