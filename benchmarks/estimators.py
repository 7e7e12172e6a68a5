"""Are the estimates right? Errors and intervals over many repetitions on families of questions with exactly known truth.

Each repetition draws fresh questions, scores them by the real pipeline, and compares with dynamic programming.
`SMALL=1` for the size that CI runs.
"""

import sys

import numpy as np
from scipy.stats import t as student_t
from trials import SMALL, Quality, World, draw_world, report, sampled_tokens, score_world, spread_over_cores

from gradalign.findings import Standing
from gradalign.inference import influence_interval
from gradalign.pipeline import Budget
from gradalign.pipeline.result import QuestionResult

FAMILIES = ("easy", "hard", "decisive", "tied")
REPETITIONS = 12 if SMALL else 1000
QUESTIONS = 32
QUALITIES = (Quality(2.0), Quality(1.5))
ALLOCATIONS = ("fixed", "adaptive")
POPULATION = 400 if SMALL else 4000


def scored(world: World, results: list[QuestionResult]) -> dict[str, np.ndarray]:
    """Per question: estimated and exact sums of <g, d>, |d|^2, values of the root, and of one node's <g, d> with its error."""
    totals = [result.scored for result in results if result.scored is not None]
    exact = world.exact()
    return {
        "dot": np.stack([s.totals.dot_CO[:, 0] for s in totals], 1),
        "dot_se": np.stack([s.totals.dot_se_CO[:, 0] for s in totals], 1),
        "norm2": np.stack([(s.visits_N * s.survey.direction_norm2_CON[:, 0]).sum(1) for s in totals], 1),
        "value": np.array([s.totals.value_N[0] for s in totals]),
        "true_dot": np.stack([e.dot_Q for e in exact]),
        "true_value": world.student.value_QTW[:, 0, 0],
        "length": np.array([s.visits_N.sum() for s in totals]),
    }


def node_terms(world: World, results: list[QuestionResult]) -> list[tuple[float, float, float]]:
    """At every chosen node with at least two tried tokens: <g, d> on the support, its standard error, and its exact value there."""
    found = []
    for q, result in enumerate(results):
        scored = result.scored
        if scored is None:
            continue
        evidence, tree = scored.evidence, scored.tree
        for m, row in enumerate(evidence.rows):
            tried = evidence.tried_MK[m]
            open_ = tried & ~evidence.success.exact[m]
            depth = int(tree.depth[scored.survey.nodes[row]])
            if tried.sum() < 2 or not open_.any():
                continue
            state = int(world.student.states(q, np.array(tree.prefix(int(scored.survey.nodes[row])), dtype=int))[-1])
            tokens = evidence.tokens_MK[m][tried]
            truth = world.student.success_QTWV[q, depth, state, tokens]
            if not ((truth > 0.02) & (truth < 0.98)).all():
                continue
            pi = scored.survey.student_probs_NK[row][tried]
            d = scored.survey.direction_CONK[0, 0, row][tried]
            exact = float((pi * (truth - pi @ truth / pi.sum())) @ d)
            estimate = scored.full.alignment[0][0]
            found.append((float(estimate.dot_N[m]), float(estimate.dot_se_N[m]), exact))
    return found


def standing(world: World, found: dict[str, np.ndarray]) -> Standing:
    """The teachers as a run would compare them."""
    questions = found["dot"].shape[1]
    length = np.broadcast_to(found["length"], found["dot"].shape)
    return Standing(
        tuple((name, "reverse_kl") for name in world.names),
        tuple(map(str, range(questions))),
        length, found["dot"], found["dot_se"], found["norm2"], np.zeros_like(found["dot"]),
    )  # fmt: skip


def covered(trials: list[Standing], gains: np.ndarray) -> tuple[float, float]:
    """How often the interval of the first gain, and of the paired difference of the two, hold those of the population."""
    hits = []
    for standing in trials:
        gain, (low, high), influence = standing.score("gain"), standing.interval("gain"), standing.influence("gain")
        below, above = influence_interval(gain[:1] - gain[1:], influence[:1] - influence[1:])
        hits.append((low[0] <= gains[0] <= high[0], below[0] <= gains[0] - gains[1] <= above[0]))
    shares = np.mean(hits, axis=0)
    return float(shares[0]), float(shares[1])


def pps_trial(job: tuple[str, str, int]) -> dict:
    family, allocation, seed = job
    world = draw_world(family, QUESTIONS, QUALITIES, seed)
    results = score_world(world, world.config(seed, rollouts=16, allocation=allocation), Budget(48))
    found = scored(world, results)
    nodes = np.array(node_terms(world, results)).reshape(-1, 3)
    return {
        "family": family,
        "allocation": allocation,
        "dot_error": (found["dot"] - found["true_dot"]).mean(1).tolist(),
        "value_error": float((found["value"] - found["true_value"]).mean()),
        "norm": float(np.sqrt(found["norm2"][0].mean())),
        "standing": standing(world, found),
        "question_hits": float((np.abs(found["dot"] - found["true_dot"]) <= student_t.ppf(0.975, 15) * found["dot_se"]).mean()),
        "these_hit": float(
            np.abs((found["dot"] - found["true_dot"])[0].sum()) <= 1.96 * np.sqrt((found["dot_se"][0] ** 2).sum())
        ),
        "node_error": float((nodes[:, 0] - nodes[:, 2]).sum()) if len(nodes) else 0.0,
        "node_hits": int((np.abs(nodes[:, 0] - nodes[:, 2]) <= 1.96 * nodes[:, 1]).sum()),
        "nodes": len(nodes),
        "tokens": float(np.mean([sampled_tokens(result) for result in results])),
    }


def top_trial(job: tuple[str, str, int]) -> dict:
    """The published scheduler: the largest nodes of each window outright, equal rollouts; sums scaled up from the nodes it took."""
    family, _, seed = job
    world = draw_world(family, QUESTIONS, QUALITIES[:1], seed)
    results = score_world(world, world.config(seed, rollouts=16, node_selection="top", replicates=4), Budget(128))
    exact, errors = world.exact()[0].dot_Q, []
    for q, result in enumerate(results):
        s = result.scored
        if s is not None:
            dot = np.nan_to_num(s.full.alignment[0][0].dot_N)
            visits = s.visits_N[s.evidence.rows]
            errors.append((visits * dot).sum() / visits.sum() * s.visits_N.sum() - exact[q])
    return {"family": family, "dot_error": float(np.mean(errors))}


def population(family: str) -> np.ndarray:
    """Gains of the teachers in a family's whole population of questions."""
    return np.array([exact.gain for exact in draw_world(family, POPULATION, QUALITIES, 10**6).exact()])


def main() -> None:
    jobs = [(family, allocation, seed) for family in FAMILIES for allocation in ALLOCATIONS for seed in range(REPETITIONS)]
    found = spread_over_cores(pps_trial, jobs, "questions with known truth")
    tops = spread_over_cores(
        top_trial, [(f, "top", s) for f in FAMILIES for s in range(max(20, REPETITIONS // 10))], "top nodes"
    )
    size = {"repetitions": REPETITIONS, "questions": QUESTIONS}
    errors, coverage, stored = [], [], {"unbiased": [], "coverage": []}
    for family in FAMILIES:
        gains = population(family)
        for allocation in ALLOCATIONS:
            mine = [trial for trial in found if (trial["family"], trial["allocation"]) == (family, allocation)]
            norm = np.mean([t["norm"] for t in mine])
            columns = {
                "<g,d>": np.array([t["dot_error"][0] for t in mine]),
                "V": np.array([t["value_error"] for t in mine]),
                "gain": np.array([t["dot_error"][0] for t in mine]) / norm,
                "node <g,d>": np.array([t["node_error"] / max(t["nodes"], 1) for t in mine]),
            }
            z = {name: x.mean() / (x.std(ddof=1) / np.sqrt(len(x))) for name, x in columns.items()}
            errors.append(
                [family, f"pps, {allocation}", *(f"{x.mean():+.2e} ({z[n]:+.1f})" for n, x in columns.items() if n != "gain")]
            )
            stored["unbiased"].append(
                {"family": family, "design": allocation, "z": {n: round(float(v), 2) for n, v in z.items()}}
            )
            gain, difference = covered([t["standing"] for t in mine], gains)
            hits = {
                "gain": gain,
                "difference": difference,
                "<g,d> of these questions": np.mean([t["these_hit"] for t in mine]),
                "<g,d> of one question": np.mean([t["question_hits"] for t in mine]),
                "node <g,d>": sum(t["node_hits"] for t in mine) / max(sum(t["nodes"] for t in mine), 1),
            }
            coverage.append([family, allocation, *(f"{100 * share:.1f}%" for share in hits.values())])
            stored["coverage"].append(
                {"family": family, "design": allocation, **{k: round(float(v), 4) for k, v in hits.items()}}
            )
        top = np.array([trial["dot_error"] for trial in tops if trial["family"] == family])
        z_top = top.mean() / (top.std(ddof=1) / np.sqrt(len(top)))
        errors.append([family, "top, as published", f"{top.mean():+.2e} ({z_top:+.1f})", "", ""])
        stored["unbiased"].append({"family": family, "design": "top", "bias": float(top.mean()), "z": round(float(z_top), 1)})
    report("estimators_bias", f"Mean error, in brackets over its standard error; {REPETITIONS} repetitions of {QUESTIONS} questions",
           ["family", "nodes", "<g,d> per question", "V", "node <g,d>"], errors, size | {"rows": stored["unbiased"]})  # fmt: skip
    report("estimators_coverage", f"Coverage of 95% intervals; {REPETITIONS} repetitions of {QUESTIONS} questions",
           ["family", "allocation", "gain", "difference of gains", "<g,d>, these questions", "<g,d>, one question",
            "<g,d>, one node"], coverage, size | {"rows": stored["coverage"]})  # fmt: skip
    if SMALL and any(abs(v) > 4.5 for row in stored["unbiased"] if "bias" not in row for v in row["z"].values()):
        sys.exit("an estimate is biased")


if __name__ == "__main__":
    main()
