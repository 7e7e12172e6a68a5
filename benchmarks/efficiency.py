"""How many tokens does the same certainty cost? This design against exhaustive uniform sampling and the published static scheduler.

On families of questions with exactly known truth, eight teachers. The other designs sample by their exact law: a rollout from a
branch succeeds with its exact success, and costs the tokens still to come. Every design works on base rollouts of its own.

- exhaustive: every visited node x 4 candidates x 1 rollout (more rollouts cost in proportion to what they gain)
- static, top: depth windows share the nodes, the largest |d| x visits of each outright, 4 candidates x 8 rollouts, as published
- static, drawn: the same with nodes drawn in proportion to size and weighted back
- ours: `gradalign score` at growing --rollouts and --budget

`SMALL=1` for the size that CI runs.
"""

import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from trials import SMALL, Quality, World, draw_world, report, sampled_tokens, score_world, spread_over_cores

from gradalign.pipeline import Budget
from gradalign.pipeline.result import QuestionResult
from gradalign.schedule import depth_window, top_nodes

FAMILIES = ("easy", "hard", "decisive", "tied")
QUALITIES = tuple(Quality(tilt) for tilt in (2.5, 1.6, 1.3, 1.0, 0.7, 0.4, 0.0, -1.0))
SPARSE = tuple(Quality(tilt, 1.5, 0.05) for tilt in (6.0, 3.5, 3.0, 2.5, 2.0, 1.0, 0.0, -2.0))
SETTINGS = ("dense", "sparse")
WORLDS = 2 if SMALL else 24
QUESTIONS = 16 if SMALL else 32
OURS = ((6, 1), (8, 1), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64))
STATIC = (4, 8, 16, 32, 64, 128)
NAMING = 4  # so many of them also name the best
BASE = 16
CANDIDATES, REPLICATES = 4, 8
DRAWS = 400
CORRECT = 0.95


@dataclass(frozen=True)
class Nodes:
    """A question's visited nodes, with everything exact: visits per rollout, d at the tokens with the largest |d|, success, cost."""

    visits: np.ndarray
    window: np.ndarray
    size: np.ndarray
    coefficient: np.ndarray
    success: np.ndarray
    cost: np.ndarray
    norm2: np.ndarray


def exact_nodes(world: World, q: int, result: QuestionResult) -> Nodes:
    """What the other designs know of a question that the pipeline surveyed."""
    s = result.scored
    assert s is not None
    survey, tree = s.survey, s.tree
    depth = tree.depth[survey.nodes]
    state = np.zeros(len(tree), dtype=int)
    for node in range(1, len(tree)):
        t = int(tree.depth[node]) - 1
        state[node] = world.student.successor_QTWV[q, t, state[tree.parent[node]], tree.token[node]]
    pi = np.exp(world.student.logprobs_QTWV[q, depth, state[survey.nodes]])
    success = world.student.success_QTWV[q, depth, state[survey.nodes]]
    tau = np.stack([np.exp(teacher.logprobs_QTWV[q, depth, state[survey.nodes]]) for teacher in world.teachers])
    f = np.log(tau) - np.log(pi)
    d = pi * (f - (pi * f).sum(-1, keepdims=True))
    kept = np.argsort(-np.abs(d).max(0), axis=1)[:, :CANDIDATES]
    p = np.take_along_axis(pi, kept, 1)
    mean = (np.take_along_axis(d, kept[None], 2) * p).sum(-1) / p.sum(-1)
    coefficient = p * (np.take_along_axis(d, kept[None], 2) - mean[:, :, None])
    norm2 = (d**2).sum(-1)
    size = np.sqrt(norm2.max(0)) * s.visits_N + 1e-12
    cost = (world.student.length - depth - 1)[:, None] * np.ones(kept.shape)
    return Nodes(s.visits_N, depth_window(depth), size, coefficient, np.take_along_axis(success, kept, 1), cost, norm2)


def sampled(nodes: Nodes, rows: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """<g, d> at some nodes from n rollouts for each candidate (M, nodes), and their tokens."""
    found = rng.binomial(n, np.clip(nodes.success[rows], 0, 1)) / n
    return (nodes.coefficient[:, rows] * found).sum(-1), float(n * nodes.cost[rows].sum())


def exhaustive(nodes: Nodes, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    dot, tokens = sampled(nodes, np.arange(len(nodes.visits)), 1, rng)
    return dot @ nodes.visits, tokens


def static_top(nodes: Nodes, count: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Nodes of a window stand for the whole window, by visits."""
    rows = top_nodes(nodes.window, nodes.size, count)
    dot, tokens = sampled(nodes, rows, REPLICATES, rng)
    total = np.bincount(nodes.window, weights=nodes.visits)
    taken = np.bincount(nodes.window[rows], weights=nodes.visits[rows], minlength=len(total))
    return dot @ (nodes.visits[rows] * (total / np.maximum(taken, 1e-12))[nodes.window[rows]]), tokens


def static_drawn(nodes: Nodes, count: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    windows = np.unique(nodes.window)
    share = np.zeros(len(nodes.size))
    for window in windows:
        mine = nodes.window == window
        share[mine] = nodes.size[mine] / nodes.size[mine].sum() / len(windows)
    chance = np.minimum(1.0, count * (0.9 * share + 0.1 * nodes.visits / nodes.visits.sum()))
    rows = np.flatnonzero(rng.random(len(chance)) < chance)
    dot, tokens = sampled(nodes, rows, REPLICATES, rng)
    return dot @ (nodes.visits[rows] / chance[rows]), tokens


def trial(job: tuple[str, str, int]) -> dict:
    """Every design on one world: estimated sums (M, Q), |d|^2 sums, tokens a question, by design and setting."""
    setting, family, seed = job
    world = draw_world(family, QUESTIONS, QUALITIES if setting == "dense" else SPARSE, seed)
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {}
    for rollouts, budget in OURS:
        results = score_world(world, world.config(seed, rollouts=rollouts), Budget(budget))
        done = [result.scored for result in results if result.scored is not None]
        dot = np.stack([s.totals.dot_CO[:, 0] for s in done], 1)
        norm2 = np.stack([(s.visits_N * s.survey.direction_norm2_CON[:, 0]).sum(1) for s in done], 1)
        found[f"ours|{rollouts}+{budget}"] = [dot, norm2, np.array([sampled_tokens(r) for r in results])]
        if rollouts == BASE:
            nodes = [exact_nodes(world, q, result) for q, result in enumerate(results)]
            own = BASE * world.student.length
            designs = {"exhaustive|1": lambda n: exhaustive(n, rng)}
            designs |= {f"static, top|{c}": lambda n, c=c: static_top(n, c, rng) for c in STATIC}
            designs |= {f"static, drawn|{c}": lambda n, c=c: static_drawn(n, c, rng) for c in STATIC}
            for name, design in designs.items():
                sums = [design(n) for n in nodes]
                norms = np.stack([n.norm2 @ n.visits for n in nodes], 1)
                found[name] = [np.stack([s for s, _ in sums], 1), norms, np.array([own + t for _, t in sums])]
    exact = world.exact()
    truth = [np.stack([e.dot_Q for e in exact]), np.stack([e.d_norm2_Q for e in exact])]
    return {"setting": setting, "family": family, "found": found, "truth": truth}


def gain(dot: np.ndarray, norm2: np.ndarray) -> np.ndarray:
    return dot.mean(-1) / np.sqrt(norm2.mean(-1))


def rmse_and_tokens(trials: list[dict], design: str) -> tuple[float, float]:
    """Root-mean-square error of gain on the worlds' own questions, and tokens a question."""
    errors = [gain(*t["found"][design][:2]) - gain(*t["truth"]) for t in trials]
    return float(np.sqrt(np.mean(np.square(errors)))), float(np.mean([t["found"][design][2].mean() for t in trials]))


def tokens_to_reach(curve: list[tuple[float, float]], target: float) -> float:
    """Tokens at which a design's error falls to the target, between its settings in proportion; infinite if none does."""
    curve = sorted(curve, key=lambda point: point[1])
    for (e0, t0), (e1, t1) in pairwise(curve):
        if e0 >= target >= e1:
            share = np.log(e0 / target) / max(np.log(e0 / e1), 1e-12)
            return float(np.exp(np.log(t0) + share * np.log(t1 / t0)))
    if curve[0][0] < target:
        return curve[0][1]
    return np.inf


def tokens_to_name_the_best(trials: list[dict], design: str, seed: int) -> tuple[float, int]:
    """Tokens, and questions, with which the largest gain is that of the best teacher in 95% of draws of questions.

    Questions are drawn from all worlds together, and scores moved by what the whole pool is off: with more draws than the pool has
    questions, its own error would decide.
    """
    dot, norm2 = (np.concatenate([t["found"][design][i] for t in trials], axis=1) for i in (0, 1))
    tokens = np.concatenate([t["found"][design][2] for t in trials]).mean()
    truth = gain(*(np.concatenate([t["truth"][i] for t in trials], axis=1) for i in (0, 1)))
    off = (gain(dot, norm2) - truth)[:, None]
    rng = np.random.default_rng(seed)
    questions, count = dot.shape[1], 2
    while count < 20 * questions:
        drawn = rng.integers(0, questions, (DRAWS, count))
        score = dot[:, drawn].mean(-1) / np.sqrt(norm2[:, drawn].mean(-1)) - off
        if (score.argmax(0) == truth.argmax()).mean() >= CORRECT:
            return float(tokens * count), count
        count = max(count + 1, int(count * 1.08))
    return np.inf, count


def main() -> None:
    jobs = [(setting, family, seed) for setting in SETTINGS for family in FAMILIES for seed in range(WORLDS)]
    trials = spread_over_cores(trial, jobs, "every design on every world")
    size = {"worlds": WORLDS, "questions": QUESTIONS}
    rows, naming, stored = [], [], {"rmse": [], "best": []}
    for setting in SETTINGS:
        for family in FAMILIES:
            mine = [t for t in trials if (t["setting"], t["family"]) == (setting, family)]
            points = {name: rmse_and_tokens(mine, name) for name in mine[0]["found"]}
            target = points["exhaustive|1"][0]
            kinds = {kind: [p for name, p in points.items() if name.startswith(kind + "|")] for kind in
                     ("ours", "exhaustive", "static, top", "static, drawn")}  # fmt: skip
            need = {kind: tokens_to_reach(curve, target) if len(curve) > 1 else curve[0][1] for kind, curve in kinds.items()}
            ratios = {kind: need["ours"] / tokens for kind, tokens in need.items() if kind != "ours"}
            shown = [f"{need[k]:,.0f}" if np.isfinite(need[k]) else f"over {max(t for _, t in kinds[k]):,.0f}" for k in kinds]
            rows.append([f"{family}, {setting}", f"{target:.4f}", *shown, *map(ratio, ratios.values())])
            stored["rmse"].append({"family": family, "setting": setting, "target": target, "tokens": need, "points": points})
            names = {f"ours, {r}+{b}": f"ours|{r}+{b}" for r, b in OURS[:NAMING]} | {"exhaustive": "exhaustive|1"}
            best = {label: tokens_to_name_the_best(mine, name, 1) for label, name in names.items()}
            ours = min(tokens for label, (tokens, _) in best.items() if label.startswith("ours"))
            naming.append(
                [
                    f"{family}, {setting}",
                    *(f"{t:,.0f} ({q:,})" if np.isfinite(t) else "not named" for t, q in best.values()),
                    ratio(ours / best["exhaustive"][0]),
                ]
            )
            stored["best"].append({"family": family, "setting": setting, "tokens": best})
    title = f"Tokens a question for the error of gain that exhaustive sampling has ({WORLDS} worlds of {QUESTIONS} questions)"
    report("efficiency", title,
           ["teachers", "rmse", "ours", "exhaustive", "static, top", "static, drawn", "ours / exh.", "/ top", "/ drawn"],
           rows, size | {"rows": stored["rmse"]})  # fmt: skip
    report("efficiency_best", "Tokens (questions) to name the best of 8 teachers in 95% of draws of questions",
           ["teachers", *(f"ours, {r}+{b}" for r, b in OURS[:NAMING]), "exhaustive", "ours / exhaustive"],
           naming, size | {"rows": stored["best"]})  # fmt: skip
    largest = "ours|" + "+".join(map(str, OURS[-1]))
    if SMALL and any(row["points"][largest][0] > 2 * row["target"] for row in stored["rmse"]):
        sys.exit("with a seventh of its tokens a family has more than twice the error of exhaustive sampling")


def ratio(value: float) -> str:
    """A ratio below one as 1/n."""
    return f"1/{1 / value:.1f}" if np.isfinite(value) and value > 0 else "-"


if __name__ == "__main__":
    main()
