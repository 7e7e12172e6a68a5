"""`gradalign show`: a question's rollouts, token by token, in the terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from gradalign.types import GradalignError
from gradalign_cli.options import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

    from gradalign.findings.tokens import Quantity, QuestionTokens, TokenRollout
    from gradalign.store import Run

_SHADES = 4


def show(
    run: RunFolder,
    question: Annotated[
        str | None, typer.Option(help="Id of the question [default: the first that was scored].", show_default=False)
    ] = None,
    rollout: Annotated[
        list[int] | None,
        typer.Option(help="Number of a rollout; once for each [default: one right and one wrong].", show_default=False),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="A teacher of the run [default: its first].", show_default=False)] = None,
    objective: Annotated[
        str | None, typer.Option(help="An objective of the run [default: its first].", show_default=False)
    ] = None,
    quantity: Annotated[
        str, typer.Option(help="dot, alignment, success, advantage, reverse_kl, forward_kl or student_entropy.")
    ] = "dot",
    position: Annotated[
        int | None,
        typer.Option(help="Show the tokens that were tried at this position of the first rollout.", show_default=False),
    ] = None,
) -> None:
    """Colour a question's rollouts token by token, and show the tokens that were tried where it matters most.

    **Examples**

    `gradalign show runs/mine --question arithmetic-train-0061`

    `gradalign show runs/mine --question q7 --rollout 3 --teacher ctx:answer --quantity advantage`

    `gradalign show runs/mine --question q7 --rollout 3 --position 12`
    """
    from gradalign.findings.tokens import QUANTITIES, pairs_of, question_tokens
    from gradalign.store import load_run
    from gradalign_cli.console import output, safe

    known = {q.name: q for q in QUANTITIES}
    if quantity not in known:
        raise GradalignError(f"no quantity {quantity!r}; choose from {', '.join(known)}")
    found = load_run(run)
    pairs = [(t, o) for t, o in pairs_of(found) if teacher in (None, t) and objective in (None, o)]
    if not pairs:
        every = ", ".join(f"{t} with {o}" for t, o in pairs_of(found))
        raise GradalignError(f"the run has no {teacher or 'teacher'} with {objective or 'an objective'}; it has {every}")
    question = question or _first(found)
    view = next(question_tokens(found, [question]), None)
    if view is None:
        raise GradalignError(f"nothing was scored of question {question!r}; the run's `skipped` table says why")
    chosen = _chosen(view, rollout)
    output.print(
        f"[bold]{safe(question)}[/]  answer {safe(str(view.question['answer']))}, pass rate {view.question['pass_rate']:.2f}"
    )
    output.print(safe(view.question["prompt"]), highlight=False)
    output.print(
        f"\n{safe(pairs[0][0])} with {safe(pairs[0][1])}; {safe(known[quantity].label)}: {safe(known[quantity].meaning)}"
    )
    _print_legend(known[quantity])
    for each in chosen:
        _print_rollout(view, each, known[quantity], *pairs[0])
    if position is not None:
        _print_position(view, chosen[0], position, *pairs[0])
        return
    seen: set[int] = set()
    for each in chosen:
        for place in view.decisive(each)[:2]:
            if int(each.nodes[place]) not in seen:
                _print_position(view, each, int(place), *pairs[0])
            seen.add(int(each.nodes[place]))


def _first(run: "Run") -> str:
    """The first question of the set of which something was scored."""
    questions = run.frame("questions", ["question", "order", "nodes", "scored_nodes"]).sort_values("order")
    for known in ("scored_nodes", "nodes"):
        having = questions.loc[questions[known] > 0, "question"]
        if len(having):
            return str(having.iloc[0])
    raise GradalignError("nothing was scored of any question; the run's `skipped` table says why")


def _chosen(view: "QuestionTokens", wanted: list[int] | None) -> "list[TokenRollout]":
    """The rollouts that are asked for; else the right and the wrong one with the most scored tokens."""
    import numpy as np

    by_number = {rollout.number: rollout for rollout in view.rollouts}
    for number in wanted or ():
        if number not in by_number:
            raise GradalignError(
                f"question {view.question['question']!r} has no rollout {number}; choose 0 to {max(by_number)}"
            )
    if wanted:
        return [by_number[number] for number in wanted]
    scored = view.nodes["scored"]
    order = sorted(view.rollouts, key=lambda r: -np.count_nonzero(scored.reindex(r.nodes)))
    kinds = [[r for r in order if (r.reward == 1) == right] for right in (True, False)]
    return [kind[0] for kind in kinds if kind]


def _shade(value: float, largest: float, signed: bool) -> str:
    """A style for a number: blue above 0 and bold, orange below 0 and underlined, so that colour is not all; the paler the smaller."""
    if value != value or largest == 0:
        return "dim"
    step = min(_SHADES, int(abs(value) / largest * _SHADES + 0.999))
    if step == 0:
        return ""
    blue, orange = ("#dbe7f3", "#a9c8e6", "#5d9bd1", "#1f5f9f"), ("#fbe6cf", "#f7c48b", "#e08a2e", "#a85400")
    dark = "white" if step > 2 else "black"
    if signed and value < 0:
        return f"underline {dark} on {orange[step - 1]}"
    return f"{'bold ' if signed else ''}{dark} on {blue[step - 1]}"


def _print_legend(quantity: "Quantity") -> None:
    from rich.text import Text

    from gradalign_cli.console import output

    legend = Text("legend ")
    if quantity.signed:
        for k in range(_SHADES, 0, -1):
            legend.append(" - ", _shade(-k / _SHADES, 1, True))
        legend.append(" 0 ")
    for k in range(1, _SHADES + 1):
        legend.append(" + ", _shade(k / _SHADES, 1, quantity.signed))
    legend.append("  ")
    legend.append("not known", "dim")
    output.print(legend)


def _print_rollout(view: "QuestionTokens", rollout: "TokenRollout", quantity: "Quantity", teacher: str, objective: str) -> None:
    import numpy as np

    from gradalign_cli.console import output, safe

    values = view.values(rollout, quantity.name, teacher, objective)
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    output.print(
        f"\n[bold]rollout {rollout.number}[/] {safe(rollout.outcome)}, reward {rollout.reward:g}; strongest colour {largest:.3g}"
    )
    output.print(_coloured(rollout, values, largest, quantity.signed))
    worst = view.worst(rollout, teacher, objective)[:5]
    if len(worst):
        dot = view.values(rollout, "dot", teacher, objective)
        told = ", ".join(f"{place} {rollout.pieces[place]!r} {dot[place]:+.2g}" for place in worst)
        output.print(f"a step toward the teacher lowers success at {safe(told)}", style="yellow", highlight=False)


def _coloured(rollout: "TokenRollout", values: "np.ndarray", largest: float, signed: bool) -> "Text":
    from rich.text import Text

    from gradalign.visible import visible

    text = Text()
    for piece, value in zip(rollout.pieces, values, strict=True):
        text.append(visible(piece), _shade(float(value), largest, signed))
    text.append(" ■" if rollout.stop == "stop" else " …", "dim")
    return text


def _print_position(view: "QuestionTokens", rollout: "TokenRollout", place: int, teacher: str, objective: str) -> None:
    """The tokens that were tried where a token of the rollout was chosen."""
    from gradalign.findings.tokens import candidate_sheet
    from gradalign_cli.tables import print_sheets

    if not 0 <= place < len(rollout.tokens):
        raise GradalignError(f"rollout {rollout.number} has no position {place}; choose 0 to {len(rollout.tokens) - 1}")
    print_sheets([candidate_sheet(view, rollout, place, teacher, objective)])
