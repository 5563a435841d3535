"""Forces for i-PI: one molecule, the calculator of this package, ASE's socket client.

    cd examples/ipi
    i-pi input.xml &
    python client.py ../../runs/demo/potential.pt

The molecule is that of ethanol.xyz; its order of atoms is the one of i-PI's input. Start as many
clients as there are cores: i-PI shares the beads out among them.
"""

import argparse

from ase.calculators.socketio import SocketClient
from ase.io import read

from calculators import PotentialCalculator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("potential")
    parser.add_argument("--structure", default="ethanol.xyz")
    parser.add_argument("--address", default="hegnn", help="as in i-PI's input")
    options = parser.parse_args()

    atoms = read(options.structure)
    atoms.calc = PotentialCalculator(options.potential)
    # The virial is wanted where the cell can move; a molecule outside a cell has none.
    client = SocketClient(unixsocket=options.address, timeout=600)
    client.run(atoms, use_stress=bool(atoms.pbc.all()))


if __name__ == "__main__":
    main()
