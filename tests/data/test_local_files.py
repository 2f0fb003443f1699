"""Local formats: what is read, and the sentence for each way a file can be broken."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffing.core.errors import UserError
from diffing.data.local_files import local_rows


def texts(path):
    return [row.values["text"] for row in local_rows(path)]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "é"}\r\n\r\n{"text": "b\u2028c"}'.encode())
    rows = list(local_rows(path))
    assert [r.values["text"] for r in rows] == ["é", "b\u2028c"]
    assert [r.index for r in rows] == [0, 1]
    assert rows[1].where == f"{path} line 3"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'{"text": "a"}\n{"text": \n', r"a\.jsonl line 2 is not JSON"),
        (b'{"text": "a"}\n["b"]\n', r"a\.jsonl line 2 holds a list, not an object"),
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', r"a\.jsonl line 3 is not UTF-8 \(byte 0xff\)"),
        (b"[" * 200_000, r"a\.jsonl line 1 is not JSON"),
    ],
)
def test_broken_json_lines(tmp_path, raw, sentence):
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=sentence):
        list(local_rows(path))


def test_csv_with_breaks_commas_and_long_cells(tmp_path):
    path = tmp_path / "a.csv"
    long = "x" * 300_000
    path.write_text(f'\ufefftext,n\n"a, ""b""\nc",1\nd\u2028e,2\n{long},3\n', encoding="utf-8")
    assert texts(path) == ['a, "b"\nc', "d\u2028e", long]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"text,n\na,1\nb\n", r"a\.csv line 3 does not have the 2 cells"),
        (b"text,n\na,1,2\n", r"a\.csv line 2 does not have the 2 cells"),
        (b'text\n"a"b\n', r"not well-formed CSV"),
        (b'text\n"a\n', r"not well-formed CSV"),
        (b"text\n\xff\n", r"a\.csv line 2 is not UTF-8"),
    ],
)
def test_broken_csv(tmp_path, raw, sentence):
    path = tmp_path / "a.csv"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=sentence):
        list(local_rows(path))


def test_text_blocks(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\r\ntwo\r\n \t\r\n\r\n  three\n\n\n\n")
    assert texts(path) == ["one\ntwo", "  three"]


def test_broken_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo \xe9t\n")
    with pytest.raises(UserError, match=r"a\.txt line 2 is not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        list(local_rows(path))


def test_parquet_with_chats(tmp_path):
    path = tmp_path / "a.parquet"
    chat = [{"role": "user", "content": "hi"}]
    pq.write_table(pa.table({"messages": [chat, chat], "text": ["a", None]}), path)
    rows = list(local_rows(path))
    assert rows[0].values["messages"] == chat
    assert [r.values["text"] for r in rows] == ["a", None]
    assert rows[1].where == f"{path} row 2"


def test_broken_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"a\.parquet is not whole parquet"):
        list(local_rows(path))


def test_parquet_with_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    raw = pa.array([b"\xff"], type=pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string())}), path)
    with pytest.raises(UserError, match=r"holds text that is not UTF-8"):
        list(local_rows(path))


def test_a_folder_is_read_in_the_order_of_names(write_lines, tmp_path):
    write_lines([{"text": "c"}], "sub/c.jsonl")
    write_lines([{"text": "b"}], "b.jsonl")
    write_lines([{"text": "a"}], "a.jsonl")
    write_lines([{"text": "hidden"}], ".cache/a.jsonl")
    (tmp_path / "README.md").write_text("no document")
    rows = list(local_rows(tmp_path))
    assert [r.values["text"] for r in rows] == ["a", "b", "c"]
    assert [r.index for r in rows] == [0, 1, 2]


def test_wrong_paths(write_lines, tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*nowhere; check the path"):
        list(local_rows(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"Folder .* holds no documents; .*\.jsonl, \.parquet, \.csv, \.txt"):
        list(local_rows(tmp_path))
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=r"a\.docx: its format is unknown"):
        list(local_rows(tmp_path / "a.docx"))
    write_lines([{"text": "a"}])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"mixes \.jsonl and \.txt files"):
        list(local_rows(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(write_lines):
    path = write_lines([{"text": "a"}])
    path.chmod(0)
    with pytest.raises(UserError, match="reading it is not permitted"):
        list(local_rows(path))
