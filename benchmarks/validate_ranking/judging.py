"""How well each predictor foretold what training did: rank correlations, regret of its first choice, signs, with intervals."""

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
from prediction import foretold_at
from scipy.stats import kendalltau, rankdata

from gradalign.findings.assessed import RANKABLE

DRAWS = 50 if os.environ.get("SMALL") == "1" else 1000
SIGNED = (*RANKABLE, "foretold, no horizon")
_SURE = 2.0  # standard errors of a change that is told from nothing
BY = ["questions", "student", "rate", "steps"]


def measured(training: pd.DataFrame) -> pd.DataFrame:
    """Change of held-out success by setting, rate, horizon and configuration: the mean over seeds, and its standard error.

    The error is what seeds of training differ by and what examinations do, whichever is larger: three seeds tell little of themselves.
    """
    groups = training.groupby([*BY, "configuration"])
    found = groups["change"].agg(["mean", "std", "count"]).rename(columns={"mean": "change"})
    between = found["std"] / np.sqrt(found["count"])
    within = groups["change_se"].apply(lambda se: np.sqrt((se**2).sum()) / len(se))
    found["change_se"] = np.maximum(between.fillna(0.0), within)
    return found[["change", "change_se"]].reset_index()


def spearman(predicted: np.ndarray, change: np.ndarray) -> float:
    """Rank correlation; 0 where a predictor is the same for all."""
    ranks = rankdata(predicted), rankdata(change)
    spread = ranks[0].std() * ranks[1].std()
    return 0.0 if spread == 0 else float(np.cov(*ranks, bias=True)[0, 1] / spread)


def regret(predicted: np.ndarray, change: np.ndarray) -> float:
    """Points of accuracy that the first choice falls short of the best; ties are shared."""
    first = predicted == predicted.max()
    return float(100 * (change.max() - change[first].mean()))


def right_signs(predicted: np.ndarray, change: np.ndarray, error: np.ndarray) -> float:
    """Share of the changes that are told from nothing whose sign was foretold."""
    told = np.abs(change) > _SURE * error
    return float((np.sign(predicted[told]) == np.sign(change[told])).mean()) if told.any() else np.nan


def table(predictions: pd.DataFrame, training: pd.DataFrame, predictors: Sequence[str]) -> pd.DataFrame:
    """A row a setting, rate, horizon and predictor."""
    both = measured(training).merge(predictions, on=["questions", "student", "configuration"])
    rows = []
    for key, mine in both.groupby(BY):
        change, error = mine["change"].to_numpy(), mine["change_se"].to_numpy()
        for name in predictors:
            predicted = told_by(name, mine, *key[2:])
            known = ~np.isnan(predicted)
            rows.append(
                dict(zip(BY, key, strict=True))
                | {"predictor": name, "configurations": int(known.sum()), "spearman": spearman(predicted[known], change[known])}
                | {"kendall": float(kendalltau(predicted[known], change[known]).statistic)}
                | {"regret": regret(predicted[known], change[known])}
                | {"signs": right_signs(predicted[known], change[known], error[known]) if name in SIGNED else np.nan}
            )
    return pd.DataFrame(rows)


def told_by(name: str, rows: pd.DataFrame, rate: float, steps: int) -> np.ndarray:
    """A predictor's values; `foretold` is that for this rate and horizon."""
    column = {"foretold": foretold_at(rate, steps), "foretold, no horizon": "foretold"}.get(name, name)
    return rows[column].to_numpy(dtype=float)


def reliability(training: pd.DataFrame) -> pd.DataFrame:
    """How far the measured order is itself sure, by setting, rate and horizon: the rank correlation of one seed with the others' mean."""
    rows = []
    for key, mine in training.groupby(BY):
        wide = mine.pivot(index="configuration", columns="seed", values="change").dropna()
        found = [spearman(wide[seed].to_numpy(), wide.drop(columns=seed).mean(axis=1).to_numpy()) for seed in wide.columns]
        rows.append(dict(zip(BY, key, strict=True)) | {"one_seed_against_others": float(np.mean(found))})
    return pd.DataFrame(rows)


def intervals(predictions: pd.DataFrame, training: pd.DataFrame, predictors: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """By student, rate, horizon and predictor: the mean Spearman over question sets, its 95% interval, and the lower end of the interval of
    its lead over every other predictor.

    Resampled are configurations (the same ones for every question set) and seeds of training.
    """
    rng, rows = np.random.default_rng(seed), []
    names, seeds = np.unique(predictions["configuration"]), np.unique(training["seed"])
    for (student, rate, steps), mine in training.groupby(["student", "rate", "steps"]):
        settings = []
        for key, one in mine.groupby(["questions", "student"]):
            change_SC = (
                one.pivot(index="seed", columns="configuration", values="change").reindex(index=seeds, columns=names).to_numpy()
            )
            told = predictions.set_index(["questions", "student"]).loc[[key]].set_index("configuration").reindex(names)
            settings.append((change_SC, np.stack([told_by(name, told, rate, steps) for name in predictors])))
        draws = np.array([
            _resampled(settings, rng.integers(len(names), size=len(names)), rng.integers(len(seeds), size=len(seeds)))
            for _ in range(DRAWS)
        ])  # fmt: skip
        value = _resampled(settings, np.arange(len(names)), np.arange(len(seeds)))
        for i, name in enumerate(predictors):
            low, high = np.quantile(draws[:, i], [0.025, 0.975])
            row = {
                "student": student,
                "rate": rate,
                "steps": steps,
                "predictor": name,
                "spearman": value[i],
                "low": low,
                "high": high,
            }
            for j, other in enumerate(predictors):
                row[f"over {other}"] = np.quantile(draws[:, i] - draws[:, j], 0.025)
            rows.append(row)
    return pd.DataFrame(rows)


def _resampled(settings: Sequence[tuple[np.ndarray, np.ndarray]], chosen: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The mean Spearman over settings of each predictor, on some configurations and seeds."""
    found = []
    for change_SC, told_PC in settings:
        drawn_SC = change_SC[seeds][:, chosen]
        there_SC = ~np.isnan(drawn_SC)
        known = there_SC.any(0)
        change = np.nansum(drawn_SC[:, known], 0) / there_SC[:, known].sum(0)
        found.append([_known_spearman(told[chosen][known], change) for told in told_PC])
    return np.nanmean(found, axis=0)


def _known_spearman(told: np.ndarray, change: np.ndarray) -> float:
    known = ~np.isnan(told)
    return spearman(told[known], change[known]) if known.sum() > 2 else np.nan
