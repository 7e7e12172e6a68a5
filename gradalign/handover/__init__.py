"""Hand a scored training configuration over to a trainer: weights of questions and tokens, and how TRL would train it. No torch."""

from gradalign.handover.export import FORMATS, Export, default_folder, export_configuration

__all__ = ["FORMATS", "Export", "default_folder", "export_configuration"]
