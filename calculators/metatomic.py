"""Export to metatomic, the format that LAMMPS, i-PI, GROMACS, PLUMED and TorchSim builds load.

    from calculators.metatomic import export_metatomic
    export_metatomic("runs/ethanol/potential.pt", "ethanol-metatomic.pt")

The written file is a metatomic ``AtomisticModel``: it offers energies in eV and declares its units,
so that an engine converts; forces and stress are the engine's derivatives of that energy. See
https://docs.metatensor.org/metatomic and ``docs/engines.md``.
"""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calculators.evaluator import open_potential
from forcefield.checkpoint import describe, load_potential
from forcefield.compiled import scripted_module
from forcefield.errors import CheckpointError, EngineError
from forcefield.export import ExportedPotential, quiet_torchscript
from forcefield.potential import Potential
from forcefield.uncertainty import has_uncertainty

ARCHITECTURE_REFERENCES = {
    "hegnn": "J. Cen et al., NeurIPS 2024, arXiv 2410.11443",
    "hegnn-published": "J. Cen et al., NeurIPS 2024, arXiv 2410.11443",
    "egnn": "V. G. Satorras et al., ICML 2021, arXiv 2102.09844",
}
"""Papers of the representations."""


def interaction_range(architecture: Mapping[str, Any]) -> float:
    """How far away an atom may be and still change the energy of another, Å.

    An interaction layer reaches one cutoff. HEGNN's atoms know the directions of their neighbours
    before its first layer, which reaches one cutoff more. A domain decomposition needs ghost atoms
    up to this distance.

    Args:
        architecture: Name and arguments of the representation, as in the header of a potential.
    """
    layers = architecture["layers"] + (0 if architecture["name"] == "egnn" else 1)
    return float(layers * architecture["cutoff"])


def export_metatomic(
    potential: str | Path | ExportedPotential | Potential,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a potential as a metatomic model.

    The model offers ``energy`` and ``feature`` (the scalars before the readout) and, if the potential
    holds an error estimate, ``energy_uncertainty``, each for systems and for atoms. It takes
    positions and gives results in float64, whatever the precision of the network: total energies in
    float32 would be good to about 1 meV only. Stress is the derivative of the energy with respect to
    a strain, taken by the engine.

    Args:
        potential: Path of an exported file (``potential.pt``) or of weights
            (``potential.safetensors``), or a loaded potential.
        path: File to write, ``.pt``. Replaced only once the new file is complete.
        metadata: What is known of a :class:`~forcefield.potential.Potential`; files bring their own.
        dtype: Precision of the network; None for that of the training.

    Raises:
        EngineError: metatomic-torch is missing or does not work with the installed torch.
        CheckpointError: There is no such file, or it is not a potential.
        ConfigError: An exported double-precision potential is asked to run in single precision.
    """
    metatomic = _import_metatomic()
    from calculators.metatomic_model import MetatomicPotential

    module, header = _module_and_header(potential, metadata, dtype)
    outputs = {
        "energy": metatomic.ModelOutput(unit="eV", sample_kind="atom"),
        "feature": metatomic.ModelOutput(
            sample_kind="atom", description="scalars of the representation, before the readout"
        ),
    }
    if has_uncertainty(module):
        outputs["energy_uncertainty"] = metatomic.ModelOutput(
            unit="eV",
            sample_kind="atom",
            description="estimated standard deviation; calibrated for total energies",
        )
    capabilities = metatomic.ModelCapabilities(
        outputs=outputs,
        atomic_types=list(header["species"]),
        interaction_range=interaction_range(header["architecture"]),
        length_unit="angstrom",
        supported_devices=["cuda", "cpu"],
        dtype="float64",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with quiet_torchscript():
        # The architecture, a dictionary of anything, is for Python only.
        warnings.filterwarnings("ignore", message=".*instance-level annotations.*")
        model = metatomic.AtomisticModel(
            MetatomicPotential(module, header["cutoff"]).eval(),
            _model_metadata(metatomic, header),
            capabilities,
        )
        model.save(temporary)
    temporary.replace(path)


def _module_and_header(
    potential: str | Path | ExportedPotential | Potential,
    metadata: Mapping[str, Any] | None,
    dtype: torch.dtype | None,
) -> tuple[Any, dict[str, Any]]:
    """A copy of the module on the CPU, and the header of its file."""
    if isinstance(potential, str | Path) and Path(potential).suffix == ".safetensors":
        potential, metadata = load_potential(potential)
    if isinstance(potential, Potential):
        eager = copy.deepcopy(potential).cpu().to(dtype).eval()
        return eager, describe(eager, dict(metadata or {}))
    exported = open_potential(potential, dtype=dtype)
    module = scripted_module(exported)
    if not hasattr(module, "last_layer"):
        raise CheckpointError(
            "this file was exported by a version without error estimates: export it again from its "
            "weights with export-potential"
        )
    return copy.deepcopy(module).cpu(), exported.metadata


def _model_metadata(metatomic: Any, header: Mapping[str, Any]) -> Any:
    from ase.data import chemical_symbols

    architecture = header["architecture"]["name"]
    elements = " ".join(chemical_symbols[z] for z in header["species"])
    return metatomic.ModelMetadata(
        name=str(header.get("name", architecture)),
        description=(
            f"{architecture} potential for {elements}, network in {header['dtype']}, written by "
            f"hegnn-forcefield {header['version']}. Forces and stress are derivatives of the energy."
        ),
        references={"architecture": [ARCHITECTURE_REFERENCES[architecture]]},
        extra={"hegnn-forcefield": json.dumps(header)},
    )


def _import_metatomic() -> Any:
    try:
        import metatomic.torch
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"metatomic-torch does not load with torch {torch.__version__} ({error}); "
            'pip install "hegnn-forcefield[metatomic]"'
        ) from error
    return metatomic.torch
