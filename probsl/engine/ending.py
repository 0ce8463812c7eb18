"""Ways in which a search can end."""

from enum import Enum


class Ending(Enum):
    """The ways in which a search can end."""

    CONVERGED = "The point is a minimum: no step worth taking is left."
    MAX_STEPS = "The steps ran out."
    STALLED = "No further decrease was found, but the point is not a smooth minimum."
    NONFINITE = "The objective or a derivative is not finite at the point."
    UNIDENTIFIED = "The point is a minimum, and so are others on a line through it."
    UNBOUNDED = "There is no minimum: coordinates diverge."
    INTERRUPTED = "The callback or a keyboard interrupt stopped the search."
