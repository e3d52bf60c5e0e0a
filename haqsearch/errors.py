"""Every error a user can cause. The message says what is wrong, where, and how to mend it."""


class HaqError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line and exits with 2."""


class RecipeError(HaqError):
    """A recipe, an override or a command-line value is wrong."""


class DataError(HaqError):
    """A data set, a split or a weights file is missing, truncated, empty or holds NaN."""


class ModelError(HaqError):
    """A network cannot be built, traced, or lowered to integers."""


class PolicyError(HaqError):
    """A policy is malformed, belongs to another model, or asks for a format that cannot be had."""


class HardwareError(HaqError):
    """A device profile is wrong, or a device cannot run what is asked of it."""


class BudgetError(HaqError):
    """A budget is malformed, or no policy of the search space can meet it."""


class SearchError(HaqError):
    """A search cannot go on: its folder belongs to another recipe, or nothing is left to propose."""


class ExportError(HaqError):
    """A program cannot be expressed in the format asked for."""
