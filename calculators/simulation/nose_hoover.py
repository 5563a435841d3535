"""A Nosé-Hoover chain that knows how many degrees of freedom it heats.

For small molecules the count matters: a thermostat that shares the energy among 27 degrees of freedom
of ethanol while three of them, the momentum, are held at zero, runs it 12 % too hot.

With p_ξ the chain's momenta, Q its masses, N_f the degrees of freedom and ω the rate of collisions,

    dp_i/dt = F_i - p_i p_ξ1 / Q_1,    Q_1 = N_f kT / ω²,    Q_k = kT / ω²,

integrated by the factorisation of Suzuki and Yoshida.

Reference: G. J. Martyna, M. E. Tuckerman, D. J. Tobias, M. L. Klein, Mol. Phys. 87, 1117 (1996).
"""

from collections.abc import Iterable

import numpy as np
from ase import units

LENGTH = 3
"""Thermostats in the chain, the first acting on the atoms."""

_W = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
_WEIGHTS = (_W, 1.0 - 2.0 * _W, _W)


class NoseHooverChain:
    """The thermostat; its coordinates and momenta are its state.

    Args:
        freedom: Degrees of freedom of the atoms.
        temperature: K.
        rate: Frequency of the chain, in 1 / ASE's unit of time.
    """

    def __init__(self, freedom: int, temperature: float, rate: float) -> None:
        self.freedom = freedom
        self.kT = units.kB * temperature
        self.masses = np.full(LENGTH, self.kT / rate**2)
        self.masses[0] *= freedom
        self.coordinates = np.zeros(LENGTH)
        self.momenta = np.zeros(LENGTH)

    def propagate(self, kinetic: float, time: float) -> float:
        """Move the chain.

        Args:
            kinetic: Kinetic energy of the atoms, eV.
            time: ASE's unit.

        Returns:
            Factor for the velocities of the atoms.
        """
        scale = 1.0
        for weight in _WEIGHTS:
            dt = weight * time
            self._kick(2.0 * kinetic * scale**2, 0.5 * dt, reversed(range(LENGTH)))
            velocity = self.momenta / self.masses
            scale *= float(np.exp(-dt * velocity[0]))
            self.coordinates += dt * velocity
            self._kick(2.0 * kinetic * scale**2, 0.5 * dt, range(LENGTH))
        return scale

    def _kick(self, twice_kinetic: float, time: float, order: Iterable[int]) -> None:
        p, Q = self.momenta, self.masses
        for k in order:
            force = twice_kinetic - self.freedom * self.kT
            if k > 0:
                force = p[k - 1] ** 2 / Q[k - 1] - self.kT
            drag = 1.0
            if k < LENGTH - 1:
                drag = float(np.exp(-0.5 * time * p[k + 1] / Q[k + 1]))
            p[k] = (p[k] * drag + time * force) * drag

    def energy(self) -> float:
        """Energy of the chain, eV: with that of the atoms it is conserved."""
        potential = self.freedom * self.coordinates[0] + self.coordinates[1:].sum()
        return float(0.5 * (self.momenta**2 / self.masses).sum() + self.kT * potential)
