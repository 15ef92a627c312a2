"""Responses on disk are the documented bytes, come back as they were, and are refused in one line where they are not
what their mark tells of."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from pipelines import shards
from pipelines.records import Response, Responses, write_responses

WRITTEN = [
    Response("sums", "1", (1, 2), (3, 4, 5), True),
    Response("", "ein Wört", (70000,), (), False),
    Response("wörds", "\ud800", (6,), (7, 8, 9), False),
]


def refused(folder: Path) -> str:
    """The line that reading all of it ends with."""
    with pytest.raises(ValueError, match="prepare again") as refusal:
        list(Responses(folder))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_bytes_by_hand():
    expected = struct.pack("<5i", 2, 3, 1, 4, 1) + struct.pack("<5i", 1, 2, 3, 4, 5) + b"sums" + b"1"
    assert WRITTEN[0].to_record() == expected
    assert Response.from_record(expected) == WRITTEN[0]


def test_they_come_back(tmp_path: Path):
    write_responses(tmp_path, 0, WRITTEN[:2])
    write_responses(tmp_path, 1, WRITTEN[2:])
    found = Responses(tmp_path)
    assert list(found) == WRITTEN
    assert found.prompt_lengths.tolist() == [2, 1, 1]
    assert found.lengths.tolist() == [5, 1, 4]
    assert found.ids(2).tolist() == [6, 7, 8, 9]
    assert found.token_range == (1, 70000)


def test_the_mark_tells_what_is_said_of_all(tmp_path: Path):
    """Ten sevens repeat themselves: of their seven 4-grams six occurred before."""
    same = Response("t", "2", (1,), (7,) * 10, False)
    write_responses(tmp_path, 0, [*WRITTEN, same])
    assert json.loads((tmp_path / "00000.json").read_text()) == {
        "responses": 4,
        "tokens": 16,
        "finished": 1,
        "repeating": 1,
        "token_range": [1, 70000],
        "prompt_lengths": [2, 1, 1, 1],
        "response_lengths": [3, 0, 3, 10],
    }
    assert Responses(tmp_path).summary() == "4 responses, 16 tokens, 25% finished, repetition rate 25.0%"


def test_a_flipped_bit(tmp_path: Path):
    write_responses(tmp_path, 0, [Response("t", str(n), (1,), tuple(range(2, 300)), True) for n in range(9)])
    file = tmp_path / "00000.array_record"
    data = bytearray(file.read_bytes())
    place = data.index(np.arange(100, 120, dtype="<i4").tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    line = refused(tmp_path)
    assert line.startswith(f"{file}: damaged (")
    assert line.endswith(f"; delete {tmp_path}/00000.json and prepare again")


@pytest.mark.parametrize(
    "other",
    [
        Response("sums", "1", (1, 2, 3), (4, 5), True),
        Response("sums", "1", (1, 2), (3, 4, 5, 6), True),
        Response("sums", "1", (1, 2), (3, 4, 70001), True),
        Response("sums", "1", (-1, 2), (3, 4, 5), True),
    ],
    ids=["another prompt", "longer", "a token above", "a token below"],
)
def test_another_response_than_the_marks(tmp_path: Path, other: Response):
    write_responses(tmp_path / "a", 0, WRITTEN)
    write_responses(tmp_path / "b", 0, [other, *WRITTEN[1:]])
    shutil.copy(tmp_path / "b" / "00000.array_record", tmp_path / "a")
    assert "a/00000.array_record: record 0 is not the response that its mark tells of" in refused(tmp_path / "a")


@pytest.mark.parametrize("record", [b"", b"\1" * 19, WRITTEN[0].to_record()[:-1], WRITTEN[0].to_record() + b"x"])
def test_a_record_of_another_length(tmp_path: Path, record: bytes):
    write_responses(tmp_path, 0, WRITTEN[:1])
    mark = json.loads((tmp_path / "00000.json").read_text())
    shards.write_shard(tmp_path, 0, [record], mark)
    assert "record 0 is not the response" in refused(tmp_path)


def test_another_number_of_records(tmp_path: Path):
    write_responses(tmp_path / "a", 0, WRITTEN)
    write_responses(tmp_path / "b", 0, WRITTEN[:2])
    shutil.copy(tmp_path / "b" / "00000.array_record", tmp_path / "a")
    assert "holds 2 records where its mark tells of 3" in refused(tmp_path / "a")


@pytest.mark.parametrize("mark", ["", "[]", "{", '{"responses": 3}'])
def test_a_mark_that_tells_nothing(tmp_path: Path, mark: str):
    write_responses(tmp_path, 0, WRITTEN)
    (tmp_path / "00000.json").write_text(mark)
    assert refused(tmp_path).startswith(f"{tmp_path}/00000.json: expected JSON with responses, ")
