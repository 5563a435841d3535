"""OpenMM Systems from XML, also with a TorchForce inside.

``openmm.XmlSerializer.serialize(system)`` writes every System. Reading one back, copying one
(``copy.deepcopy``) and putting a TorchForce into a CustomCVForce crash the process where the
TorchForce plugin was built for another version of OpenMM, as today's packages are. The XML holds
all that is needed to make the force anew, and that is what :func:`system_from_xml` does.
"""

import copy
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import torch

from forcefield.errors import EngineError
from forcefield.export import prepare_process, quiet_torchscript

if TYPE_CHECKING:
    import openmm
    import openmmtorch

TORCH_FORCE_VERSION = 4
"""Version of the plugin's XML that is read here."""


def system_from_xml(xml: str, device: str | torch.device | None = None) -> "openmm.System":
    """The System that ``openmm.XmlSerializer.serialize`` wrote.

    A TorchForce comes behind the other forces. A PythonForce is unpickled and a TorchForce runs
    what is in the file: read XML from people you trust only. A TorchForce made with ``compile=True`` can
    be read everywhere and evaluated only in the process that made it.

    Args:
        xml: The text.
        device: Where a TorchForce's module shall lie; None for where it was.

    Raises:
        EngineError: The plugin is missing, or the XML was written by another version of it.
    """
    return system_from_tree(ElementTree.fromstring(xml), device)


def system_tree(system: "openmm.System") -> ElementTree.Element:
    """The XML of a System, to be edited and read back."""
    import openmm

    return ElementTree.fromstring(openmm.XmlSerializer.serialize(system))


def system_from_tree(
    root: ElementTree.Element, device: str | torch.device | None = None
) -> "openmm.System":
    """As :func:`system_from_xml`; takes the TorchForces out of the tree."""
    import openmm

    forces = root.find("Forces")
    torch_forces = []
    if forces is not None:
        torch_forces = [force for force in forces if force.get("type") == "TorchForce"]
        for force in torch_forces:
            forces.remove(force)
    system = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    for force in torch_forces:
        system.addForce(_torch_force(force, device))
    return system


def forces_from_tree(forces: Sequence[ElementTree.Element], particles: int) -> list[Any]:
    """OpenMM's forces from their XML, each free to be added to a System.

    Args:
        forces: Of OpenMM's own kinds.
        particles: Number of particles of the System.
    """
    import openmm

    system = openmm.System()
    for _ in range(particles):
        system.addParticle(1.0)
    root = system_tree(system)
    for place in root.findall("Forces"):
        place[:] = forces
    system = system_from_tree(root)  # owns its forces: it has to outlive the copying
    return [copy.deepcopy(force) for force in system.getForces()]


def _torch_force(
    element: ElementTree.Element, device: str | torch.device | None
) -> "openmmtorch.TorchForce":
    import calculators.torchcompiled  # noqa: F401  the operator that a compiled potential is called with
    from calculators.torchplugin import import_plugin, import_vesin

    version = element.get("version")
    if version != str(TORCH_FORCE_VERSION):
        raise EngineError(
            f"this TorchForce was written in version {version} of its XML, version "
            f"{TORCH_FORCE_VERSION} can be read; make the force anew from the exported potential"
        )
    plugin = import_plugin()
    prepare_process()
    content = bytes.fromhex(element.get("encodedFileContents", ""))
    with quiet_torchscript():
        try:
            module = torch.jit.load(io.BytesIO(content), map_location=device)
        except RuntimeError as error:
            if "CUDA" in str(error) and not torch.cuda.is_available():
                raise EngineError(
                    "the potential in this XML was written for a GPU, and there is none here: "
                    'system_from_xml(text, device="cpu") reads it for the processor'
                ) from error
            import_vesin()  # Most likely the class of neighbour lists is not registered yet.
            module = torch.jit.load(io.BytesIO(content), map_location=device)
    force = plugin.TorchForce(
        module, {p["name"]: p["value"] for p in _items(element, "Properties")}
    )
    force.setOutputsForces(element.get("outputsForces") == "1")
    force.setUsesPeriodicBoundaryConditions(element.get("usesPeriodic") == "1")
    force.setForceGroup(int(element.get("forceGroup", "0")))
    force.setName(element.get("name", "TorchForce"))
    for parameter in _items(element, "GlobalParameters"):
        force.addGlobalParameter(parameter["name"], float(parameter["default"]))
    for parameter in _items(element, "ParameterDerivatives"):
        force.addEnergyParameterDerivative(parameter["name"])
    return force


def _items(element: ElementTree.Element, name: str) -> list[dict[str, Any]]:
    group = element.find(name)
    return [] if group is None else [dict(item.attrib) for item in group]
