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


class NonFiniteForceError(ForceFieldError):
    """The potential returned NaN or infinite forces: the simulation has left its domain."""


class EngineError(ForceFieldError):
    """A simulation engine or its plugin is missing, or does not work with the installed torch."""
