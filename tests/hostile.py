"""A run whose every text from outside is hostile: question, id, rollouts, teacher. What shows it must show it as text."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from test_pipeline_exact import config_for

from gradalign.api import run_score
from gradalign.models import LoadedModel
from gradalign.pipeline import Budget, Cast, Effort, Member
from gradalign.store import Run
from gradalign.testbed import TabularCodec, TabularModel
from gradalign.types import Question, TeacherSpec

WORDS = (
    "<script>document.title='owned'</script>",
    "</style></script><img src=x onerror=alert(1)>",
    "\u202edrow\u2066",
    "\x1b[31mred\x1b]0;t\x07",
)
TEACHER = "model:<svg onload=document.title='owned'>\u202e\x1b[0m[bold]"
QUESTION = "q0</script><b>\u202e\x1b[2J"
TEXT = "Is it </textarea><script>document.title='owned'</script>\x1b[31m\u202e[red]?"


class HostileCodec(TabularCodec):
    """Tokens read as markup, direction marks and terminal escapes."""

    def text(self, tokens) -> str:
        reward = self.model.rewards.get(tuple(int(token) for token in tokens))
        said = "".join(WORDS[int(token)] for token in tokens)
        return said if reward is None else f"{said}\nAnswer: {'yes' if reward else 'no'}"


def hostile_run(tabular: TabularModel, folder: Path) -> Run:
    """Six questions of it, scored."""

    def member(model: TabularModel) -> Member:
        return Member(LoadedModel(model, HostileCodec(model), model.name), model)

    name = TEACHER.removeprefix("model:")
    cast = Cast(member(tabular), (TeacherSpec(TEACHER, "none", name),), {name: member(tabular.tilted(3.0, name))})
    questions = [Question(QUESTION if i == 0 else f"q{i}", TEXT, "yes", "boolean") for i in range(6)]
    config = replace(config_for(6), teachers=(TEACHER,), objectives=("reverse_kl", "forward_kl"))
    return run_score(config, folder, cast=cast, questions=questions, effort=Effort(Budget(96)))


def is_clean(text: str) -> bool:
    """Does the text hold nothing that a terminal or a browser would obey?"""
    return (
        not any(ord(c) < 32 and c not in "\n\t" for c in text) and not {*text} & {*"\u202e\u2066\u200f"} and bool(np.size(text))
    )
