"""The potential in openmm-ml: ``MLPotential("hegnn", modelPath="potential.pt")``.

    from openmmml import MLPotential
    potential = MLPotential("hegnn", modelPath="runs/ethanol/potential.pt")
    system = potential.createSystem(topology)
    mixed = potential.createMixedSystem(topology, classical_system, ml_atoms)

openmm-ml finds this through the entry point ``openmmml.potentials``. It brings its own embeddings,
link atoms among them. The force is always a PythonForce: openmm-ml copies forces, which a TorchForce
does not survive.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calculators.evaluator import DEFAULT_MAX_FORCE, open_potential
from calculators.openmm import check_volume
from calculators.openmm_forces import python_force
from calculators.openmm_region import connect_molecules
from forcefield.errors import ConfigError
from forcefield.neighbors import DEFAULT_SKIN

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology

PRECISIONS = {None: None, "single": torch.float32, "double": torch.float64}
"""Names that openmm-ml's users know."""

OF_EMBEDDINGS = frozenset({"linkAtomDistances", "mlLongRange"})
"""Options of openmm-ml's embeddings, which it hands to the potential, too."""

# openmm-ml loads this module while it is being imported itself, so that its base classes cannot be
# had here: both classes have the methods of MLPotentialImplFactory and MLPotentialImpl, as they are
# in openmm-ml 1.8.


class HEGNNPotentialImplFactory:
    """What the entry point names; see openmm-ml's ``MLPotentialImplFactory``."""

    def createImpl(  # noqa: N802
        self, name: str, modelPath: str | Path | None = None, **options: Any
    ) -> "HEGNNPotentialImpl":
        """An implementation for one exported file.

        Raises:
            ConfigError: There is no ``modelPath``, or an unknown option.
        """
        if modelPath is None:
            raise ConfigError(
                f"MLPotential({name!r}) needs the exported file: "
                f'MLPotential({name!r}, modelPath="runs/.../potential.pt")'
            )
        if options:
            raise ConfigError(
                f"MLPotential({name!r}) takes modelPath alone, found {', '.join(sorted(options))}; "
                "the others belong to createSystem and createMixedSystem"
            )
        return HEGNNPotentialImpl(modelPath)


class HEGNNPotentialImpl:
    """One exported potential; see openmm-ml's ``MLPotentialImpl``.

    Args:
        path: The exported file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def addForces(  # noqa: N802
        self,
        topology: "Topology",
        system: "openmm.System",
        atoms: Iterable[int] | None,
        forceGroup: int,
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        skin: float = DEFAULT_SKIN,
        max_force: float = DEFAULT_MAX_FORCE,
        **options: Any,
    ) -> None:
        """Add a PythonForce, and in a box bonds without energy, by which a barostat knows molecules.

        Args:
            topology: Of the System, link atoms included.
            system: Gets the force.
            atoms: Indices of the atoms that the potential describes, None for all.
            forceGroup: Of the force.
            device: Where the model runs; None for a GPU if torch sees one.
            precision: ``"single"`` or ``"double"``; None for that of the file.
            skin: See :func:`calculators.openmm.torch_force`.
            max_force: Likewise.
            **options: Those of openmm-ml's embeddings are left to them.

        Raises:
            ConfigError: Unknown option or precision.
            CheckpointError, UnknownElementError: As for :func:`calculators.openmm.torch_force`.
        """
        atoms = None if atoms is None else list(atoms)
        unknown = sorted(set(options) - OF_EMBEDDINGS)
        if unknown:
            raise ConfigError(
                f"the potential does not know the option {unknown[0]!r}; "
                "it takes device, precision, skin and max_force"
            )
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is 'single' or 'double', found {precision!r}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        box = topology.getPeriodicBoxVectors()
        if box is not None:
            check_volume(box, topology.getNumAtoms())
        # For an interpolated system openmm-ml hands over an empty System, without a box.
        periodic = box is not None or system.usesPeriodicBoundaryConditions()
        force = python_force(
            open_potential(self.path, str(device), PRECISIONS[precision]),
            topology,
            particles=atoms,
            periodic=periodic,
            skin=skin,
            max_force=max_force,
            force_group=forceGroup,
        )
        system.addForce(force)
        # For an interpolated system openmm-ml keeps forces of an empty System, which has no molecules.
        if periodic and system.getNumParticles() == topology.getNumAtoms():
            described = set(range(topology.getNumAtoms()) if atoms is None else atoms)
            bonds = ((a.index, b.index) for a, b in topology.bonds())
            connect_molecules(system, [pair for pair in bonds if described.issuperset(pair)])

    def getSupportedEmbeddings(self) -> list[str]:  # noqa: N802
        """No embedding of its own: those of openmm-ml serve."""
        return []

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Atoms see each other within the cutoff only."""
        return False
