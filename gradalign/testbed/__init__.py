"""Models whose every number is known exactly, as real engines and language models: for testing estimators against the truth."""

from gradalign.testbed.automaton import Automaton, AutomatonCodec, ExactScores
from gradalign.testbed.characters import CharacterChain, TokenView
from gradalign.testbed.families import FAMILIES, Family, draw_family
from gradalign.testbed.tabular import TabularCodec, TabularModel

__all__ = [
    "FAMILIES",
    "Automaton",
    "AutomatonCodec",
    "CharacterChain",
    "ExactScores",
    "Family",
    "TabularCodec",
    "TabularModel",
    "TokenView",
    "draw_family",
]
