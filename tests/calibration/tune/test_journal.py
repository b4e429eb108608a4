"""The journal: what is in it outlives a sudden end, and is of one search only."""

from pathlib import Path

import pytest

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.calibration.tune.errors import JournalError
from flowturbo_trt.calibration.tune.journal import LOCK, Journal, kept

SETTINGS = {"seed": 0, "engines": {"a": "0123"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, SETTINGS)
    journal.put(("errors", "a", "H2", 0, 3), [0.1, None, 1 / 3])
    journal.put(("own",), ["H1P5R3"])
    return path


def test_what_was_written_is_read(file: Path) -> None:
    journal = Journal(file, SETTINGS)
    assert len(journal) == 2
    assert journal.get(("errors", "a", "H2", 0, 3)) == [0.1, None, 1 / 3]
    assert journal.get(("errors", "a", "H2", 0, 4)) is None


def test_half_a_line_is_cut_off(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": ["models"], "val')
    journal = Journal(file, SETTINGS)
    assert len(journal) == 2
    journal.put(("models",), 7)
    assert Journal(file, SETTINGS).get(("models",)) == 7
    assert file.read_bytes().startswith(whole)


def test_a_file_that_ended_in_its_first_line(tmp_path: Path) -> None:
    for content in (b"", b'{"journal": 1, "see'):
        (tmp_path / "j").write_bytes(content)
        assert len(Journal(tmp_path / "j", SETTINGS)) == 0
        assert len(Journal(tmp_path / "j", SETTINGS)) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "seed": 1}, "is of a search with seed 0, this one has 1; give another --out"),
        ({**SETTINGS, "engines": {"a": "9"}}, r'with engines {"a": "0123"}, this one has {"a": "9"}'),
        ({"seed": 0}, r'with engines {"a": "0123"}, this one has null'),
    ],
)
def test_of_another_search(file: Path, settings: dict[str, object], words: str) -> None:
    before = file.read_bytes()
    with pytest.raises(JournalError, match=words):
        Journal(file, settings)
    assert file.read_bytes() == before


def test_names_may_hold_what_ends_lines_elsewhere(tmp_path: Path) -> None:
    settings = {"engines": {"a\u2028b\u0085c": "0123"}}
    Journal(tmp_path / "j", settings).put(("errors", "a\u2028b\u0085c"), 1)
    assert Journal(tmp_path / "j", settings).get(("errors", "a\u2028b\u0085c")) == 1


def test_one_search_at_a_time(file: Path) -> None:
    with held(file.parent / LOCK), pytest.raises(JournalError, match="another search is at work there"):
        kept(file, SETTINGS).__enter__()
    with kept(file, SETTINGS) as journal:
        assert len(journal) == 2
        with held(file.parent / LOCK) as free:
            assert not free
    with pytest.raises(JournalError, match="nowhere/journal: cannot be written"):
        kept(file.parent / "nowhere" / "journal", SETTINGS).__enter__()


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"key": ["own"]}', "{}"])
def test_a_line_that_is_no_record(file: Path, line: str) -> None:
    file.write_text(file.read_text() + f"{line}\n")
    with pytest.raises(JournalError, match=r"journal.jsonl: line 4 is no record of a search"):
        Journal(file, SETTINGS)


def test_files_that_are_no_journals(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff\n")
    with pytest.raises(JournalError, match="picture: cannot be read"):
        Journal(tmp_path / "picture", SETTINGS)
    with pytest.raises(JournalError, match="cannot be read"):
        Journal(tmp_path, SETTINGS)
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "journal", SETTINGS)
