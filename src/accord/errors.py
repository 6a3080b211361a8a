"""Every error that Accord raises on purpose, and its one warning.

AccordError
├── ConfigError (ValueError)        a recipe that cannot run: unknown key, wrong value, options that exclude each other
├── DataError (ValueError)          a file or row that cannot be used; carries the rejected rows
├── ModelError (ValueError)         a model, adapter or tokenizer that is missing or does not fit
├── RewardError (RuntimeError)      a reward source that raised, returned too few scores, or a NaN
├── GenerationError (RuntimeError)  an engine that could not sample
├── TrainingError (RuntimeError)    a loss or gradient that is not finite
└── RunError (RuntimeError)         a run directory in use, a checkpoint that cannot be read

Each message says what was given, the rule, why, and what to do. The command line prints the message alone; a traceback
is printed for any other exception, because that is a defect of ours.
"""


class AccordError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(AccordError, ValueError):
    """A recipe that cannot run."""


class DataError(AccordError, ValueError):
    """Data that cannot be used."""


class ModelError(AccordError, ValueError):
    """A model, adapter or tokenizer that is missing or does not fit its role."""


class RewardError(AccordError, RuntimeError):
    """A reward source that failed. A failure is never turned into a score."""


class GenerationError(AccordError, RuntimeError):
    """An engine that could not sample."""


class TrainingError(AccordError, RuntimeError):
    """A step whose loss or gradient is not finite."""


class RunError(AccordError, RuntimeError):
    """A run directory or checkpoint that cannot be used."""


class AccordWarning(UserWarning):
    """Something that works but is seldom what is wanted."""
