"""Write the pages that are made from the code: python docs/build.py [--check]. `--check` writes nothing and fails where a page is old."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import typer
from gradalign_cli.main import app
from pages import table
from typer.cli import get_docs_for_click
from validation import validation_page

from gradalign.store import FIRST_STEPS, TABLES

HERE = Path(__file__).parent
STORED = HERE.parent / "benchmarks" / "smollm2"
RESULTS = HERE.parent / "benchmarks" / "results"


def schema_page() -> str:
    """Every table and column of a run folder."""
    parts = [
        "# The tables of a run\n",
        "Made from `gradalign/store/schema.py` and `first_steps.py` beside it by `python docs/build.py`.\n",
        "A run folder holds `run.json`, `finished/` with a marker and checksums for each part, `log/` with what happened in each session "
        "(`gradalign status` reads it), and a folder of Parquet files for each "
        'table. They open in pandas, DuckDB, Polars or `datasets.load_dataset("parquet", …)` without this package; '
        "`gradalign.load_run(path)` gives them as frames: `run.alignment`, `run.nodes`, … Columns carry unit and meaning as Arrow metadata "
        "too. `first_steps.parquet` is there once `gradalign foretell` was asked.\n",
    ]
    for name, columns in [*TABLES.items(), ("first_steps.parquet", FIRST_STEPS)]:
        rows = [f"| `{c.name}` | {c.type} | {c.unit} | {c.meaning.replace('|', chr(92) + '|')} |" for c in columns]
        parts.append("\n".join([f"## {name}\n", "| column | type | unit | meaning |", "| --- | --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def commands_page() -> str:
    """Every command with its options."""
    made = get_docs_for_click(obj=typer.main.get_command(app), ctx=typer.Context(typer.main.get_command(app)), name="gradalign")
    return f"<!-- Made from the commands by `python docs/build.py`. -->\n\n{made.strip()}\n"


def smollm2_page() -> str:
    """What was found for SmolLM2-135M-Instruct, as `benchmarks/smollm2_run.py` stored it."""
    run, ranking, contexts = (
        json.loads((STORED / f"{name}.json").read_text(encoding="utf-8")) for name in ("run", "ranking", "contexts")
    )
    settings = run["settings"]
    skipped = "; ".join(f"`{row['teacher']}` {row['questions']} questions ({row['reason']})" for row in run["skipped"])
    parts = [
        "# A real model: SmolLM2-135M-Instruct\n",
        "Made from `benchmarks/smollm2/` by `python docs/build.py`; `python benchmarks/smollm2_run.py` makes that anew.\n",
        "The smallest instruct model that a package carries (a GGUF file of 4 bits), asked 20 yes-or-no and 20 multiple-choice questions "
        "that were written for this, [`questions.jsonl`](../benchmarks/smollm2/questions.jsonl). Its teachers are itself under three "
        f"contexts. {run['seconds'] / 60:.0f} minutes on {run['cores']} CPU cores, the model's loading and {run['rollouts']:,} rollouts "
        f"included. The whole report: [`report.html`](../benchmarks/smollm2/report.html).\n",
        "```python",
        "gradalign.score(",
        '    "questions.jsonl",',
        *(f"    {name}={json.dumps(value)}," for name, value in settings.items() if value is not None),
        ")",
        "```\n",
        f"Of its own {run['rollouts']:,} rollouts {run['right']:,} are right, {run['ungradable']:,} state no answer that could be read: "
        "many are about the question and do not answer it. They count as not right, and are counted. Skipped: "
        f"{skipped}.\n",
        "## What each context does to accuracy\n",
        table(
            ("context", "built for", "right under it", "95% interval", "more than alone on the same questions", "95% interval"),
            [
                (f"`{c['teacher']}`" if c["teacher"].startswith("ctx") else c["teacher"], _share(c["built"]), _share(c["accuracy"]),
                 _interval(c, "accuracy", _share), _share(c["lift"]), _interval(c, "lift", _share))
                for c in contexts
            ],
        ),
        "## Does a step toward it raise success?\n",
        table(
            ("teacher", "objective", "drive ·10³", "95% interval", "gain", "95% interval", "mean cosine", "95% interval"),
            [
                (f"`{r['teacher']}`", f"`{r['objective']}`", _thousandths(r["drive"]), _interval(r, "drive", _thousandths),
                 _number(r["gain"]), _interval(r, "gain", _number), _number(r["mean_cosine"]), _interval(r, "mean_cosine", _number))
                for r in sorted(ranking, key=lambda r: -r["drive"])
            ],
        ),
        "`ctx:none` is the student itself, so that its step is nothing: it shows that the pipeline puts zero where zero is. What the "
        "scores mean: [How to read the scores](scores.md). Transfer to other questions is in `ranking.json`; so few questions say nothing "
        "of it.\n",
    ]  # fmt: skip
    return "\n".join(parts)


def speed_page() -> str:
    """Ours against what people do today, as `benchmarks/bench.py` stored it, and what was measured on a GPU."""
    stored, cuda, sampling, first = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bench", "vocabulary_pass_cuda", "sampling_cuda", "first_steps_cost_cuda")
    )
    sampled = sampling["rows"][0]
    rows = []
    for row in stored["rows"]:
        bar = "" if row["bar"] is None else f"{'≥' if row['more'] else '≤'} {row['bar']:g}"
        kept = "" if row["kept"] is None else "yes" if row["kept"] else "**no**"
        found = (row["what"], row["unit"], _spread(row["ours"]), row["against"], _spread(row["theirs"]), _spread(row["ratios"]))
        rows.append((*found, bar, kept))
    parts = [
        "# How fast it is\n",
        "Made from `benchmarks/results/` by `python docs/build.py`; `make bench` measures anew. Each row is ours against a baseline in "
        "the same run, in turns: medians, in brackets the smallest and the largest. The ratio is ours over the baseline's; the bar is what "
        "we aim at, for the ratio or, where there is no baseline, for ours, and a bar that is not kept says so.\n",
        f"On {_machine(stored['machine'])}:\n",
        table(("", "unit", "ours", "against", "its", "ratio", "bar", "kept"), rows),
        "Forward passes of the built-in student, of 0.37 million parameters, are so short that two fifths of the default run are text, "
        "numbers and files; with SmolLM2-135M a tenth or less is. So the default run has a process on every core, and of its wall time "
        "that part counts here in which at least one of them is in a forward pass. Exponents are those of time and of peak memory as "
        "the input grows ([how it grows](cost.md)).\n",
        f"The pass over the vocabulary on {_machine(cuda['machine'])}, random weights in the shape of Qwen3-0.6B:\n",
        table(
            ("", "case", "tokens", "seconds", "baseline's", "ratio", "bar", "memory ratio"),
            [
                (row["what"], row["case"], f"{row['tokens']:,}", _three(row["seconds"]["median"]),
                 _three(row["baseline_seconds"]["median"]), _three(row["ratio"]["median"]), f"≤ {row['bar']:g}",
                 _three(row["memory_ratio"]) if "memory_ratio" in row else "")
                for row in cuda["rows"]
            ],
        ),
        f"There, targeted rollouts with the engine `hf`: {_spread(sampled['hf']['per_second'])} tokens a second, against "
        f"{_spread(sampled['generate']['per_second'])} by one `generate` call for each candidate, {_three(sampled['ratio'])} times as many "
        "(`benchmarks/sampling.py --device cuda --shape qwen3-0.6b --turns 2`). `gradalign foretell` took "
        f"{_spread(first['seconds'])} s for a configuration's {first['tokens']:,} tokens in float32, "
        f"{_three(median(first['seconds']) / median(first['baseline_seconds']))} times one forward and backward pass over them, and "
        f"{first['peak_gib']:.0f} GiB, of which that pass alone takes {first['baseline_peak_gib']:.0f} "
        "(`benchmarks/first_steps_cost.py --device cuda --shape qwen3-0.6b --questions 8 --length 256`).\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _machine(told: dict[str, Any]) -> str:
    gpu = f"one {told['gpu']}, " if "gpu" in told else ""
    return f"{gpu}{told['cores']} cores of an {told['processor']}, torch {told['torch']}, transformers {told['transformers']}"


def _spread(values: list[float]) -> str:
    """Median, and the smallest and largest where there are several."""
    if not values:
        return ""
    return _three(median(values)) + (f" ({_three(min(values))} to {_three(max(values))})" if len(values) > 1 else "")


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _thousandths(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:+.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _interval(row: dict[str, Any], name: str, shown: Any) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"[{shown(low)}, {shown(high)}]"


PAGES = {
    "schema.md": schema_page,
    "commands.md": commands_page,
    "smollm2.md": smollm2_page,
    "speed.md": speed_page,
    "validation.md": validation_page,
}


def main() -> int:
    old = []
    for name, page in PAGES.items():
        text, place = page(), HERE / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            old.append(name)
            if "--check" not in sys.argv:
                place.write_text(text, encoding="utf-8")
    if old and "--check" in sys.argv:
        print(f"old: {', '.join(old)}; run python docs/build.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
