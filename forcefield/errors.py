"""Exceptions for mistakes that a user can correct.

Every message says what was found, where, and what to do about it. Programming errors inside the
project stay ordinary Python exceptions.
"""


class ForceFieldError(Exception):
    """Base class of every error that this project raises on purpose."""


class DataError(ForceFieldError):
    """A data set holds something that cannot be trained on: names the file and the frame."""


class ConfigError(ForceFieldError):
    """A configuration or a command line holds an unknown key or an impossible value."""


class CheckpointError(ForceFieldError):
    """A weights file or an exported potential cannot be read by this version."""


class UnknownElementError(ForceFieldError):
    """A structure contains an element on which the potential was not trained."""


class InvalidStructureError(ForceFieldError):
    """A structure cannot be evaluated: NaN positions, atoms on top of each other, a singular cell."""


class OutOfDomainError(ForceFieldError):
    """A simulation has left the domain of its potential: what both kinds of bad forces mean."""


class NonFiniteForceError(OutOfDomainError):
    """The potential returned NaN or infinite forces."""


class AbsurdForceError(OutOfDomainError):
    """The potential returned a force far beyond any in a molecule at rest or in motion."""


class EngineError(ForceFieldError):
    """A simulation engine or its plugin is missing, or does not work with the installed torch."""


class CompilationError(ForceFieldError):
    """Something could not be compiled for this machine, or the result is wrong."""
