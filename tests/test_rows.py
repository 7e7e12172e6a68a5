"""Rows as columns: a table made of arrays is the one made row by row, what is unknown is missing, and how it is written to disk."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pipeline_exact import cast_of, questions

from gradalign.api import run_score
from gradalign.pipeline import Budget, Effort, RunConfig
from gradalign.store import RunFolder, arrow_schema, arrow_table, load_run, ragged

TEACHERS = ("model:better", "model:worse")
SCORED = ["tried", "student_mass", "value", "informative", "g_norm2", "g_norm2_raw", "g_norm2_visited", "g_norm2_visited_raw"]


@pytest.fixture(scope="module", params=["pps", "top"])
def run(request, tabular, tmp_path_factory):
    config = RunConfig(
        "tabular", "made", TEACHERS, ("reverse_kl", "dr_grpo"), rollouts=16, max_tokens=4, demonstrations=1,
        candidates=2, node_selection=request.param,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("rows") / request.param
    return run_score(config, folder, cast=cast_of(tabular, TEACHERS), questions=questions(3), effort=Effort(Budget(24)))


def test_columns_are_the_table_of_their_rows():
    columns = {
        "question": "q", "order": np.arange(3, dtype=np.int32), "choices": [["a"], None, []],
        "pass_rate": np.array([0.5, 0, 1], np.float32),
        "right": pa.array([1, None, 3]),
    }  # fmt: skip
    rows = [
        {"question": "q", "order": 0, "choices": ["a"], "pass_rate": 0.5, "right": 1},
        {"question": "q", "order": 1, "choices": None, "pass_rate": 0.0, "right": None},
        {"question": "q", "order": 2, "choices": [], "pass_rate": 1.0, "right": 3},
    ]
    assert arrow_table("questions", 3, columns).equals(pa.Table.from_pylist(rows, schema=arrow_schema("questions")))
    assert arrow_table("questions", 0, {"question": "q"}).equals(arrow_schema("questions").empty_table())


def test_arrays_of_any_lengths_are_one_column():
    arrays = [np.array([1.5]), np.zeros(0), np.array([2.0, 3.0])]
    assert ragged(arrays, pa.float32()).to_pylist() == [[1.5], [], [2.0, 3.0]]
    assert ragged([], pa.int32()).to_pylist() == []


def test_what_only_scored_nodes_have_is_missing_elsewhere(run):
    nodes = run.table("nodes")
    scored = nodes["scored"].to_numpy()
    assert 0 < scored.sum() < len(scored)
    for name in SCORED:
        np.testing.assert_array_equal(nodes[name].is_valid().to_numpy(), scored, name)
    outright = run.identity["node_selection"] == "top"
    for table in ("nodes", "alignment"):
        weighted = run.table(table)["weight"].is_valid().to_numpy()
        np.testing.assert_array_equal(weighted, (scored if table == "nodes" else np.ones(len(weighted), bool)) & (not outright))


def test_rewards_have_no_teacher_probability(run):
    directions = run.frame("directions")
    assert directions[directions.teacher == "rewards"].teacher_prob.isna().all()
    assert directions[directions.teacher != "rewards"].teacher_prob.notna().all()


def test_rows_stand_in_the_order_of_pairs_and_nodes(run):
    for _, rows in run.frame("alignment").groupby("question"):
        pairs = rows[["teacher", "objective"]].drop_duplicates().itertuples(index=False, name=None)
        assert list(pairs) == [("model:better", "reverse_kl"), ("rewards", "dr_grpo"), ("model:worse", "reverse_kl")]
        assert rows.groupby(["teacher", "objective"]).node.is_monotonic_increasing.all()


def test_real_numbers_have_no_dictionary_on_disk(run):
    metadata = pq.read_metadata(next((run.path / "teachers").glob("*.parquet"))).row_group(0)
    encodings = {metadata.column(i).path_in_schema: {*metadata.column(i).encodings} for i in range(metadata.num_columns)}
    assert "RLE_DICTIONARY" in encodings["teacher"]
    assert "RLE_DICTIONARY" not in encodings["reverse_kl"]
    assert "BYTE_STREAM_SPLIT" in encodings["reverse_kl"]


def test_some_columns_of_a_part(run):
    folder = RunFolder(run.path)
    assert folder.table(0, "questions", ["rollouts"]).to_pylist() == [{"rollouts": 16}] * 3
    assert folder.rows(0, "scores") == load_run(run.path).table("scores").to_pylist()
