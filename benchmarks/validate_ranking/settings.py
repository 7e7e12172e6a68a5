"""What is compared: three question sets, two students, and the configurations of `configurations.yaml`."""

from dataclasses import dataclass
from pathlib import Path

from gradalign.configurations import Configuration, load_configurations

PLACE = Path(__file__).resolve().parent
SETS = ("arithmetic", "boolean", "choice")
STUDENTS = ("small", "medium")
HORIZONS = (1, 5, 20, 100)
SEEDS = (0, 1, 2)
RATES = (
    1e-4,
    4e-4,
)  # of Adam, chosen once: after one step of the larger a good teacher's student gains about 6 points, of the smaller 2
TRAINED_ON, HELD_OUT = 96, 200  # questions
MAX_TOKENS = 48
LEAKS = ("ctx:answer", "ctx:misled.j2")


@dataclass(frozen=True)
class Setting:
    """A question set and a student."""

    questions: str
    student: str

    def __str__(self) -> str:
        return f"{self.questions}, {self.student}"

    @property
    def held_back(self) -> bool:
        """Were predictors derived without looking at it? All were derived on the small student."""
        return self.student != "small"

    @property
    def folder(self) -> str:
        """A name for files."""
        return f"{self.questions}-{self.student}"


def all_settings() -> list[Setting]:
    return [Setting(questions, student) for student in STUDENTS for questions in SETS]


def configurations() -> tuple[Configuration, ...]:
    return load_configurations(PLACE / "configurations.yaml")
