"""Blocks of the reports."""

import re

from matplotlib.figure import Figure

from training.html import Card, Section, cards, figure_html, key_values, note, number, page, table


def test_page_refers_to_no_other_file():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    html = page("A run", [Section("Plots", figure_html(figure, "a line"))], "below", "end")
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert 'alt="a line"' in html
    assert html.startswith("<!doctype html>")


def test_text_is_escaped():
    html = page("<b>", [Section("a < b", note("x & y") + table(["<i>"], [["</td>"]]))])
    assert "<b>" not in html
    assert "a &lt; b" in html
    assert "x &amp; y" in html
    assert "&lt;/td&gt;" in html
    assert "&lt;script&gt;" in cards([Card("<script>", "1")])


def test_numbers_are_written_as_people_do():
    assert number(12.345) == "12.3"
    assert number(0.0123) == "0.0123"
    assert number(0.0) == "0"
    assert number(12345.6) == "12,346"
    assert number(1.5e-5) == "1.50e-05"
    assert ">–<" in key_values({"nothing": None})
    assert "class=number>1,000<" in table(["n"], [[1000]])
