"""Pages of a parquet file against pyarrow: filters, search, order, and values that try to be SQL."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")

from diffing.core.errors import UserError
from diffing.ui import query as q

ODD = 'we"ird; DROP TABLE "x" --'
N = 200
WORDS = ["the heron", " The", "o'clock", 'say "so"', "100%", "a_b", "naïve", "ÉCOLE", "\n", "", "日本", None]


@pytest.fixture(scope="module")
def stored():
    """A table of every kind of column, with nulls and ties."""
    return pa.table(
        {
            "id": pa.array(range(N), pa.int64()),
            "word": pa.array([WORDS[i % len(WORDS)] for i in range(N)], pa.string()),
            "role": pa.array([("user", "assistant", "it's")[i % 3] for i in range(N)], pa.string()),
            "score": pa.array([None if i % 7 == 0 else ((i * 37) % 50) / 4 - 3 for i in range(N)], pa.float64()),
            "tie": pa.array([i % 4 for i in range(N)], pa.int32()),
            "kept": pa.array([None if i % 11 == 0 else i % 2 == 0 for i in range(N)], pa.bool_()),
            "tokens": pa.array([[f"t{i}", "'"] for i in range(N)], pa.list_(pa.string())),
            ODD: pa.array([f"v{i % 5}" for i in range(N)], pa.string()),
        }
    )


@pytest.fixture(scope="module")
def path(stored, tmp_path_factory):
    """The table on disk in several row groups, in a folder whose name is a pattern of DuckDB."""
    folder = tmp_path_factory.mktemp("tables [a] 'b'")
    pq.write_table(stored, folder / "rows*.parquet", row_group_size=32)
    return folder / "rows*.parquet"


@pytest.fixture(scope="module")
def known(path):
    return q.columns(path)


@pytest.fixture
def read(path, known):
    """All rows of a query, and their number counted on its own."""

    def call(query, size=N):
        rows = q.page(path, query, known, 0, size)
        assert q.count(path, query, known) == len(rows)
        return rows

    return call


def test_columns_and_what_they_hold(known):
    assert {c.name: c.kind for c in known} == {
        "id": "number", "word": "text", "role": "text", "score": "number", "tie": "number", "kept": "truth",
        "tokens": "list", ODD: "text",
    }  # fmt: skip


def test_everything_as_stored(read, stored):
    assert read(q.Query()).equals(stored)


def test_pages_in_order(path, known, stored):
    for offset, size in ((0, 10), (30, 5), (190, 50), (500, 10)):
        assert q.page(path, q.Query(), known, offset, size).equals(stored.slice(offset, size))


@pytest.mark.parametrize(
    ("column", "operator", "value", "expected"),
    [
        ("role", "is one of", ["user", "it's"], lambda t: pc.is_in(t["role"], value_set=pa.array(["user", "it's"]))),
        ("tie", "is one of", [3], lambda t: pc.equal(t["tie"], 3)),
        ("kept", "is one of", [True], lambda t: t["kept"]),
        ("kept", "is one of", [False], lambda t: pc.invert(t["kept"])),
        ("role", "is one of", ["nobody"], lambda t: pc.equal(t["role"], "nobody")),
        ("score", "at least", 2.5, lambda t: pc.greater_equal(t["score"], 2.5)),
        ("score", "at most", -1.25, lambda t: pc.less_equal(t["score"], -1.25)),
        ("id", "at least", 150, lambda t: pc.greater_equal(t["id"], 150)),
        ("word", "contains", "THE", lambda t: pc.match_substring(t["word"], "the", ignore_case=True)),
        ("word", "contains", "'", lambda t: pc.match_substring(t["word"], "'")),
        ("word", "contains", "%", lambda t: pc.match_substring(t["word"], "%")),
        ("word", "contains", "_", lambda t: pc.match_substring(t["word"], "_")),
        ("word", "contains", "école", lambda t: pc.equal(t["word"], "ÉCOLE")),
        (ODD, "is one of", ["v3"], lambda t: pc.equal(t[ODD], "v3")),
        (ODD, "contains", "V4", lambda t: pc.equal(t[ODD], "v4")),
    ],
)
def test_a_filter(column, operator, value, expected, read, stored):
    wanted = stored.filter(expected(stored))
    assert read(q.Query((q.Filter(column, operator, value),))).equals(wanted)
    assert (len(wanted) == 0) == (value == ["nobody"])


def test_several_filters_must_all_hold(read, stored):
    filters = (
        q.Filter("score", "at least", 0.0), q.Filter("score", "at most", 5.0), q.Filter("role", "is one of", ["user"])
    )  # fmt: skip
    between = pc.and_(pc.greater_equal(stored["score"], 0.0), pc.less_equal(stored["score"], 5.0))
    assert read(q.Query(filters)).equals(stored.filter(pc.and_(between, pc.equal(stored["role"], "user"))))


@pytest.mark.parametrize("search", ["the", "V2", "it's", '"so"', "日", "NAÏVE"])
def test_a_search_looks_into_every_text_column(search, read, stored):
    found = [i for i, row in enumerate(stored.to_pylist()) if any(
        isinstance(v, str) and search.lower() in v.lower() for v in row.values()
    )]  # fmt: skip
    assert read(q.Query(search=search))["id"].to_pylist() == found
    assert found


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", ["score", "word", "kept", ODD])
def test_order_with_nulls_last_and_ties_as_stored(order, descending, read, stored):
    rows = stored.to_pylist()
    present = sorted([r for r in rows if r[order] is not None], key=lambda r: r["id"])
    text = isinstance(present[0][order], str)
    present.sort(key=lambda r: r[order].encode() if text else r[order], reverse=descending)
    if descending:
        groups = {}
        for r in present:
            groups.setdefault(r[order], []).append(r["id"])
        ids = [i for same in groups.values() for i in sorted(same)]
    else:
        ids = [r["id"] for r in present]
    ids += [r["id"] for r in rows if r[order] is None]
    assert read(q.Query(order=order, descending=descending))["id"].to_pylist() == ids


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 50])
def test_pages_of_tied_rows_neither_repeat_nor_lose_any(size, path, known):
    query = q.Query(order="tie")
    ids = [i for at in range(0, N, size) for i in q.page(path, query, known, at, size)["id"].to_pylist()]
    assert ids == sorted(range(N), key=lambda i: (-(i % 4), i))


@pytest.mark.parametrize(
    "value",
    [
        "' OR 1=1 --",
        "'; DROP TABLE x; --",
        '" OR ""="',
        "%' OR '1'='1",
        "\\",
        "');COPY (SELECT 1) TO '/tmp/x'--",
        "\x00",
    ],
)
def test_values_are_never_sql(value, read, path):
    assert len(read(q.Query(search=value))) == 0
    assert len(read(q.Query((q.Filter("word", "contains", value),)))) == 0
    assert len(read(q.Query((q.Filter("word", "is one of", [value]),)))) == 0
    assert sorted(p.name for p in path.parent.iterdir()) == ["rows*.parquet"]


def test_a_column_that_is_not_there_is_refused(path, known):
    with pytest.raises(AssertionError):
        q.page(path, q.Query(order='id" --'), known, 0, 1)


def test_a_value_of_another_kind_is_one_sentence(path, known):
    with pytest.raises(UserError, match="does not fit its column"):
        q.count(path, q.Query((q.Filter("score", "at least", "much"),)), known)


def test_choices(path, known, stored):
    assert q.choices(path, "role", known) == ["assistant", "it's", "user"]
    assert q.choices(path, "kept", known) == [False, True]
    assert q.choices(path, ODD, known) == [f"v{i}" for i in range(5)]
    assert q.choices(path, "id", known) == []
    assert q.choices(path, "word", known) == sorted({w for w in WORDS if w is not None}, key=str.encode)


def test_csv_is_what_the_query_gives(path, known, stored):
    query = q.Query((q.Filter("tie", "is one of", [1]),), order="score")
    read = pv.read_csv(
        io.BytesIO(q.csv(path, query, known, 30)), parse_options=pv.ParseOptions(newlines_in_values=True)
    )
    wanted = q.page(path, query, known, 0, 30)
    assert read.column_names == stored.column_names
    assert read["id"].equals(wanted["id"])
    assert read["score"].to_pylist() == wanted["score"].to_pylist()
    assert read["tokens"].to_pylist() == [str(v) for v in wanted["tokens"].to_pylist()]
    assert [w or "" for w in wanted["word"].to_pylist()] == read["word"].to_pylist()


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1", b"plain text"])
def test_a_file_that_is_no_parquet_is_one_sentence(content, tmp_path):
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.parquet cannot be read.*overwrite=true\.$"):
        q.columns(path)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"gone\.parquet cannot be read"):
        q.columns(tmp_path / "gone.parquet")


def test_an_empty_table(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string()), "n": pa.array([], pa.float64())}), tmp_path / "e.parquet")
    known = q.columns(tmp_path / "e.parquet")
    query = q.Query(search="x", order="n")
    assert q.count(tmp_path / "e.parquet", query, known) == 0
    assert q.page(tmp_path / "e.parquet", query, known, 0, 10).num_rows == 0
    assert q.choices(tmp_path / "e.parquet", "a", known) == []


@pytest.fixture
def long(tmp_path, monkeypatch):
    """200,000 rows of 300 characters, and a limit to what may be used to read them."""
    n, path = 200_000, tmp_path / "long.parquet"
    scores = [float((i * 7919) % n) for i in range(n)]
    texts = [f"{i % 1000:04} {'padding ' * 40}{i}" for i in range(n)]
    pq.write_table(pa.table({"id": range(n), "score": scores, "text": texts}), path, row_group_size=10_000)
    monkeypatch.setitem(q._SETTINGS, "memory_limit", "64MB")
    return path, scores


@pytest.mark.parametrize("order", [None, "score"])
def test_a_late_page_of_a_long_table_takes_little_memory(order, long):
    path, scores = long
    expected = sorted(range(len(scores)), key=(lambda i: -scores[i]) if order else None)
    found = q.page(path, q.Query(order=order), q.columns(path), len(scores) - 3, 50)
    assert found["id"].to_pylist() == expected[-3:]
    assert found["score"].to_pylist() == [scores[i] for i in expected[-3:]]


def test_an_order_that_takes_too_much_memory_is_one_sentence(long):
    path, scores = long
    with pytest.raises(UserError, match="too long"):
        q.page(path, q.Query(order="text"), q.columns(path), len(scores) - 3, 50)
