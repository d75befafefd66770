"""Tables and first sentences."""

import os
import sys

import pytest

from nvg.cli.table import first_sentence, print_table

ROWS = [("NAME", "WHAT", "FROM"), ("a", "one two three four five six seven eight nine", "here"), ("bb", "", "x")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Keep some. Drop others.", "Keep some"),
        ("Keep\n    some.", "Keep some"),
        ("Nucleus (Holtzman et al. 2019): keep some. More.", "Nucleus (Holtzman et al. 2019): keep some"),
        ("By Fan et al. At ACL.", "By Fan et al. At ACL"),
        ("Ids 0 .. 255 are bytes; 0.5 too. See `x`.", "Ids 0 .. 255 are bytes; 0.5 too"),
        ("Short ones, e.g. A, B. C", "Short ones, e.g. A, B"),
        ("", ""),
    ],
)  # fmt: skip
def test_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


def test_a_piped_table_is_not_wrapped(capsys):
    print_table(ROWS, prose=1)
    assert capsys.readouterr().out == (
        "NAME  WHAT                                          FROM\n"
        "a     one two three four five six seven eight nine  here\n"
        "bb                                                  x\n"
    )


@pytest.mark.parametrize(("columns", "width"), [(40, 40), (46, 46), (10, 32)])
def test_a_terminal_gets_no_line_that_is_too_long(columns, width, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    print_table(ROWS, prose=1)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    prose = [line[6:-6] if line.endswith(("here", "FROM")) else line[6:] for line in lines[1:-1]]
    assert " ".join(part.strip() for part in prose) == ROWS[1][1]
    assert lines[1].endswith("here")


def test_where_one_column_is_not_enough_the_widest_others_are_wrapped(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 24)))
    options = ", ".join(f"option{number}=0.5" for number in range(6))
    print_table([("name", options, "What it does, in some more words than there is room for"), ("b", "", "x")], prose=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert "".join(line[6:36] for line in lines).replace(" ", "") == options.replace(" ", "")


def test_words_stay_whole_where_another_column_can_give_way(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 24)))
    print_table([("name", "some " * 12, "generation_of_logits.py says " * 2)], prose=2)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    assert shown.count("generation_of_logits.py") == 2
