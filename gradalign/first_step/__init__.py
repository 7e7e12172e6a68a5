"""What the first step of training does to success on other questions: derivatives in all parameters of the student."""

from gradalign.first_step.foretelling import OPTIMISER_BATCH, Foretelling, Taught, Unit, foretell

__all__ = ["OPTIMISER_BATCH", "Foretelling", "Taught", "Unit", "foretell"]
