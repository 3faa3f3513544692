"""Formats: what files become texts, with their titles, headings and lines; and `learn` over folders of them."""

import bz2
import datetime
import gzip
import html.parser
import io
import json
import lzma
import pathlib
import re
import zipfile

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalog import assert_cut_well

import batos

RST = """
==========
The manual
==========

.. contents::
   :local:

Opening
-------

Turn the brass valve as in this example::

    valve.turn(3)

        valve.stop()

.. note::
   The needle stands at zero.

.. code-block:: python

   def turn(): pass

Details
~~~~~~~

Last words.

Closing
-------

The end.
"""

PYTHON = '''import os


class Valve:
    """Holds water back."""

    def turn(self, times):
        return times


async def close(valve):
    await valve.turn(1)
'''

HTML = """<!doctype html>
<html><head><title>The  manual</title><style>p { color: red }</style></head>
<body>
<h1>Opening &amp; closing</h1>
<p>Turn the <b>brass</b>
valve.</p>
<script>alert("no text")</script>
<h2>Steps</h2>
<ul>
<li>one</li>
<li>two</li>
</ul>
</body></html>
"""


def pdf_of(*pages, title=None):
    """Return a small PDF, a line of text on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>",
               f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{4 + 2 * n} 0 R' for n in range(len(pages)))}] >>",
               "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    for n, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects += [f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R "
                    "/Resources << /Font << /F1 3 0 R >> >> >>",
                    f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"]
    if title:
        objects.append(f"<< /Title ({title}) >>")
    out, places = io.BytesIO(b""), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n{body}\nendobj\n".encode())
    start, info = out.tell(), f"/Info {len(objects)} 0 R" if title else ""
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    out.write("".join(f"{place:010} 00000 n \n" for place in places).encode())
    out.write(f"trailer << /Size {len(objects) + 1} /Root 1 0 R {info} >>\nstartxref\n{start}\n%%EOF".encode())
    return out.getvalue()


def headings(text, kind):
    return [draft.headings for draft in batos.cut_text(text, kind)]


def test_titles_of_restructuredtext_have_the_levels_of_their_marks(monkeypatch):
    monkeypatch.setattr(batos, "_CARRY_WORDS", 1)
    monkeypatch.setattr(batos, "_CHUNK_FLOOR_WORDS", 1)
    found = headings(RST, "rst")
    assert ("The manual", "Opening") in found and ("The manual", "Opening", "Details") in found
    assert found[-1] == ("The manual", "Closing")
    kinds = [(block.kind, RST[block.start:block.end].strip()[:24]) for block in batos._blocks(batos._Lines(RST), "rst")]
    assert ("code", ".. contents::\n   :local:") in kinds and ("code", "Turn the brass valve as ") in kinds
    assert [text for kind, text in kinds if kind == "heading"][0].startswith("=====")
    assert any(kind == "prose" and text.startswith(".. note::") for kind, text in kinds)


def test_source_code_is_cut_at_its_definitions(monkeypatch):
    monkeypatch.setattr(batos, "_CARRY_WORDS", 1)
    monkeypatch.setattr(batos, "_CHUNK_FLOOR_WORDS", 1)
    found = headings(PYTHON, "code")
    assert ("class Valve", "def turn") in found and found[-1] == ("async def close",)


TEXTS = st.text(st.sampled_from("a= -~*.:#\n\t`>_é<&|\r"), max_size=300)


@given(TEXTS, st.sampled_from(sorted(batos._TEXT_KINDS)))
@settings(max_examples=300)
def test_no_kind_of_text_loses_anything(text, kind):
    assert_cut_well(text, kind)


@pytest.mark.parametrize("kind", sorted(batos._TEXT_KINDS))
@pytest.mark.parametrize("unit", ["a::\n", "==\na\n==\n", "def f\n", ".. a::\n  b\n\n", " " * 50 + "a::\n\n", "<p>", "-\n"])
def test_no_kind_takes_more_than_a_moment(kind, unit):
    batos.cut_text(unit * 4000, kind)


def test_a_page_of_html_has_its_headings_and_title_and_knows_its_files_lines(tmp_path):
    path = tmp_path / "a.HTML"
    path.write_text(HTML)
    text, metadata = batos.read_file(path, 1 << 20)
    lines, source = text.split("\n"), HTML.split("\n")
    assert lines == ["# Opening & closing", "", "Turn the brass", "valve.", "", "## Steps", "", "- one", "- two"]
    assert metadata["title"] == "The manual"
    told = {line: source[batos.file_lines(metadata, [number])[0] - 1] for number, line in enumerate(lines, 1)}
    assert told["valve."] == "valve.</p>" and told["- two"] == "<li>two</li>" and "closing</h1>" in told[lines[0]]


# As a program writes it that breaks lines within tags, where nobody sees them.
BROKEN_HTML = """<body><div class="titlepage"><h3
>Memory</h3></div><dl><dt><span>shared_buffers</span> (<code>integer</code>)</dt><dd><p>
  How much memory is shared: <b>25</b> <i>percent</i>
  at most.
</p><p>Or less.</p></dd><dt>port</dt><dd>5432 is meant.</dd></dl><p>Start it with:</p><pre class="x">
server <b>-D</b> data

  stop
</pre><p>Sizes:</p><table><tr><th>Type<th>Bytes</tr><tr><td><p>bigint</p></td><td>8
bytes</td></tr></table><ol><li><p>First.</p></li><li>Second<br>line.</li></ol><p>It ends.</body>"""


def test_what_stands_in_one_line_of_a_file_of_html_begins_anew_as_the_page_shows_it():
    text, metadata = batos._read_html(BROKEN_HTML.encode(), "a.html")
    assert text.split("\n") == [
        "### Memory", "", "shared_buffers (integer)", "How much memory is shared: 25 percent", "at most.", "", "Or less.", "",
        "port", "5432 is meant.", "", "Start it with:", "", "    server -D data", "", "      stop", "", "Sizes:", "",
        "| Type | Bytes |", "| bigint | 8 bytes |", "", "- First.", "- Second", "line.", "", "It ends."]
    assert batos.file_lines(metadata, [1, 4, 5, 9, 14, 16, 20, 27]) == [2, 3, 4, 5, 6, 8, 9, 10]
    drafts = batos.cut_text(text, "html")
    assert drafts[0].headings == ("Memory",)


@pytest.mark.parametrize("packed", [None, 7, [[1, 2]], "", "no numbers", "\u00e9", batos.packed_numbers([]), "c$}?0"])
def test_what_tells_no_lines_of_a_file_is_let_alone(packed):
    assert batos.file_lines({"file_lines": packed}, [1, 2]) == []


def test_a_page_in_one_line_tells_its_line_in_one_short_value():
    text, metadata = batos._read_html(b"<table>" + b"<tr><td>a<td>b" * 60_000, "a.html")
    assert text.count("\n") == 59_999 and len(metadata["file_lines"]) < 1000
    assert batos.file_lines(metadata, [1, 60_000]) == [1, 1] and batos.file_lines(metadata, [60_001]) == []


def test_a_table_that_only_arranges_a_page_makes_no_rows_of_what_it_holds():
    page = b"<table><tr><td><h1>Pump</h1><p>It turns.</p><pre>a\n  b</pre></td></tr><tr><td>Left</td><td>Right</td></tr></table>"
    text = batos._read_html(page, "a.html").text
    assert [line for line in text.split("\n") if line] == ["# Pump", "It turns.", "    a", "      b", "| Left | Right |"]


NAMED_ROWS = "<tr><th><a>Syntax:</a></th><td><code>Wait <var>s</var></code></td></tr><tr><th>Default:</th><td>Wait 5</td></tr>"


@pytest.mark.parametrize("rows, told", [
    (NAMED_ROWS, ["- Syntax: Wait s", "- Default: Wait 5"]),
    ("<tr><th>Name<th>Value</tr>" + NAMED_ROWS, ["| Name | Value |", "| Syntax: | Wait s |", "| Default: | Wait 5 |"]),
    ("<tr><th>a<td>b<td>c</tr>", ["| a | b | c |"]), ("<tr><td>a<td>b</tr>", ["| a | b |"]),
])
def test_what_the_rows_of_a_table_without_a_header_name_is_told_behind_its_name(rows, told):
    page = f"<p>It waits.</p><table>{rows}</table>".encode()
    assert batos._read_html(page, "a.html").text.split("\n")[2:] == told


def test_a_line_of_a_paragraph_that_begins_with_a_mark_is_no_item():
    text = batos._read_html(b"<p>Options after a\n+ or - are merged\nin turn.<ul><li>one</li></ul>", "a.html").text
    assert text.split("\n") == ["Options after a + or - are merged", "in turn.", "", "- one"]


def test_blanks_between_the_marks_of_a_listing_are_kept():
    page = b"<pre>\n<b>-d</b> <i>id</i>\n    <b>Delete</b>  <i>it.</i>\n</pre>"
    assert batos._read_html(page, "a.html").text.rstrip() == "    -d id\n        Delete  it."


NOTE = """<div class="tip"><table border="0"><tr><td rowspan="2"><img src="tip.png"></td><th>Tip</th></tr>
<tr><td><p>Open the cock slowly.</p></td></tr></table></div><table role="presentation"><tr><td>Left.</td><td>Right.</td></tr>
</table><table><tr><th>Valve</th><th>Bar</th></tr><tr><td>brass</td><td>4</td></tr></table>"""


def test_a_table_that_draws_a_frame_is_no_table():
    told = batos._read_html(NOTE.encode(), "a.html").text
    assert told == "Tip\n\nOpen the cock slowly.\n\nLeft.\n\nRight.\n\n| Valve | Bar |\n| brass | 4 |"


WAYS = """<div class="navheader"><table><tr><td>Prev</td><td>Next</td></tr></table></div><p>The valve.</p>
<nav><ul><li>Home<nav>Up</nav></li></ul></nav><div role="navigation"><div>Index</div> of terms</div><p>The lamp.</p>"""


def test_what_leads_to_other_pages_is_no_text():
    assert batos._read_html(WAYS.encode(), "a.html").text == "The valve.\n\nThe lamp."
    assert batos._read_html(b"<p>One.</p><nav>Two.<p>Three.", "a.html").text == "One.\n\nTwo.\n\nThree."   # it never ends


class Said(html.parser.HTMLParser):
    """What a page says, with no order in it."""

    def __init__(self, text):
        super().__init__()
        self.text, self.hidden = "", 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in batos._HTML_HIDDEN

    def handle_endtag(self, tag):
        self.hidden -= tag in batos._HTML_HIDDEN and self.hidden > 0

    def handle_data(self, data):
        self.text += "" if self.hidden else data


TAGS = st.sampled_from("p /p li /li ul /ul dt /dt dd /dd tr /tr td table /table h2 /h2 pre /pre br b /b script /script".split())
PIECES = TAGS.map("<{}>".format) | st.text(st.sampled_from("ab1\n <&;"), max_size=6)


@given(st.lists(PIECES, max_size=30).map("".join))
@settings(max_examples=300)
def test_any_html_says_all_that_it_says_once_and_its_lines_are_the_files(text):
    read, metadata = batos._read_html(text.encode(), "x.html")
    assert re.findall(r"\w", read) == re.findall(r"\w", Said(text).text)
    places = [batos.file_lines(metadata, [number]) or [number] for number in range(1, read.count("\n") + 2)]
    assert places == sorted(places) and 1 <= places[0][0] and places[-1][0] <= text.count("\n") + 1


def test_a_pdf_has_pages_and_a_title(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of("The brass valve.", "The copper pump.", title="A manual"))
    text, metadata = batos.read_file(path, 1 << 20)
    assert text.split("\n\n") == ["The brass valve.", "The copper pump."] and metadata == {"pages": [1, 3], "title": "A manual"}
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "a.pdf", text, metadata)
    row = batos.search_(catalog, "pump")["results"][0]["chunk"]
    assert row["pages"] == [1, 2] and row["title"] == "A manual"     # one chunk of both


@pytest.mark.parametrize(("name", "data", "says"), [
    ("a.pdf", b"%PDF-1.4 nothing", "does not read as PDF"), ("a.pdf", pdf_of(""), "no text"),
    ("a.txt", bytes(range(256)) * 10, "not text"), ("a.md", b"\x7fELF\0\0\0" * 99, "not text"),
    ("a.txt", b"x" * 2000, "may have"),
])
def test_what_is_no_text_is_refused_with_a_clear_word(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(batos.BadRequest, match=says):
        batos.read_file(tmp_path / name, max(1500, len(data)) if says != "may have" else 1500)
    with pytest.raises(batos.BadRequest, match="cannot be read"):
        batos.read_file(tmp_path / "none.txt", 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Große Ventile – naïve".encode(encoding))
    assert batos.read_file(tmp_path / "a.txt", 1000).text == "Große Ventile – naïve"


@pytest.fixture
def folder(tmp_path):
    files = {"a.md": b"# A\n\nThe brass valve.", "sub/b.rst": RST.encode(), "sub/c.html": HTML.encode(), "d.py": PYTHON.encode(),
             "e.pdf": pdf_of("The silver lamp."), "f.txt": "Größe".encode("cp1252"), "g.txt": b"\0\1\2" * 50,
             "h.xyz": b"unknown kind", ".git/i.md": b"# no", "empty.txt": b""}
    for name, data in files.items():
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_bytes(data)
    return tmp_path / "docs"


def test_a_folder_is_learnt_again_and_what_vanished_goes(daemon, folder, capsys):
    endpoint = daemon().endpoint

    def learn(*more):
        status = batos.main(["learn", str(folder), *more, "--endpoint", endpoint])
        told = capsys.readouterr()
        assert status == 0, told.err
        return told.out + told.err
    first = learn()
    assert "6 learnt, 2 left out" in first or "6 learnt" in first and "2 left out" in first, first
    assert "g.txt: left out: g.txt is not text" in first and "h.xyz" not in first and ".git" not in first
    assert "6 known already" in learn()
    (folder / "a.md").write_text("# A\n\nThe copper valve.")
    (folder / "d.py").unlink()
    again = learn("--vanished")
    assert "1 learnt" in again and "4 known already" in again and "1 gone" in again and "its file is gone" in again
    assert "h.xyz" in learn("--only", "*.xyz") and "b.rst" not in learn("--without", "*.rst")
    told = learn("--without", "sub", "--without", "e.*")
    assert "b.rst" not in told and "c.html" not in told and "e.pdf" not in told and "a.md" in told
    assert "b.rst" in learn("--only", "sub/*") and "empty.txt: left out: empty.txt is empty" in learn()
    with batos.Client(endpoint) as client:
        rows = client.call("list_documents", limit=4)
        more = client.call("list_documents", after=rows["result"]["after"])
        names = [pathlib.Path(row["doc_id"]).name for row in rows["results"] + more["results"]]
        assert sorted(names) == ["a.md", "b.rst", "c.html", "e.pdf", "f.txt", "h.xyz"] and more["result"]["after"] is None
        assert [row["kind"] for row in client.call("list_documents", prefix=str(folder / "sub"))["results"]] == ["rst", "html"]
        row = client.call("search_memory", query="silver lamp")["results"][0]["chunk"]
        assert row["pages"] == [1, 1]
        assert client.call("search_memory", query="Größe")["results"]
        assert not client.call("search_memory", query="brass", doc_id=str(folder / "a.md"))["results"]


def test_a_file_by_its_path_is_read_as_its_kind(daemon, folder):
    running = daemon("--learn-roots", str(folder))
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="lamp", path=str(folder / "e.pdf"))
        assert client.call("search_memory", query="silver lamp")["results"][0]["chunk"]["doc_id"] == "lamp"
        with pytest.raises(batos.BadRequest, match="not text"):
            client.call("index_document", doc_id="g", path=str(folder / "g.txt"))


@pytest.mark.parametrize("name, text, kind", [
    ("a.rst.txt", "Title\n=====\n\n.. note:: this\n", "rst"), ("a.txt", "Title\n-----\n\nSee :func:`len`.\n", "rst"),
    ("a.txt", "Title\n=====\n\nPlain.\n", "text"), ("a.txt", ".. note:: no title\n", "text"), ("a.txt", "# one\n", "text"),
    ("", "# one\n\ntwo\n", "markdown"), ("a.py", "x = 1\n=====\n.. note::\n", "code"),
    ("README.Debian", "# one\n\ntwo\n", "markdown"), ("README.Debian", "One.\n", "text"), ("run", "#!/bin/sh\necho\n", "code"),
    ("ls.1.gz", "# ls(1)\n\n## NAME\n\nls - list\n", "markdown"), ("syslog.1", "Nov 1 start\n", "text"),
    ("a.md.gz", "One.\n", "markdown"), ("a.xyz", "# one\n\ntwo\n", "text")])
def test_the_kind_of_a_text_is_guessed(name, text, kind):
    assert batos.guess_kind(text, name) == kind


def zipped(**entries):
    """Return a zipped document; __ stands for / and _dot_ for . in the names of its entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return out.getvalue()


WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
DOCX = zipped(
    word__styles_dot_xml=f'<w:styles xmlns:w="{WORD}"><w:style w:styleId="berschrift2"><w:name w:val="heading 2"/>'
                         "</w:style></w:styles>",
    word__document_dot_xml=f"""<w:document xmlns:w="{WORD}"><w:body>
<w:p><w:pPr><w:pStyle w:val="berschrift2"/></w:pPr><w:r><w:t>Opening</w:t></w:r></w:p>
<w:p><w:r><w:t>Turn the </w:t></w:r><w:r><w:delText>old </w:delText><w:t>brass valve.</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>Valve</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Pressure</w:t></w:r></w:p></w:tc></w:tr>
<w:tr><w:tc><w:p><w:r><w:t>087</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>4 bar</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
</w:body></w:document>""")
ODT = zipped(content_dot_xml="""<o:document xmlns:o="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:t="urn:oasis:names:tc:opendocument:xmlns:text:1.0" xmlns:b="urn:oasis:names:tc:opendocument:xmlns:table:1.0">
<o:body><o:text><t:h t:outline-level="2">Opening</t:h><t:p>Turn the <t:span>brass</t:span><t:s/>valve.</t:p>
<b:table><b:table-row><b:table-cell><t:p>Valve</t:p></b:table-cell><b:table-cell><t:p>Pressure</t:p></b:table-cell></b:table-row>
<b:table-row><b:table-cell><t:p>087</t:p></b:table-cell><b:table-cell><t:p>4 bar</t:p></b:table-cell></b:table-row></b:table>
</o:text></o:body></o:document>""")
EPUB = zipped(
    **{"META-INF__container_dot_xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
       '<rootfiles><rootfile full-path="in/book.opf"/></rootfiles></container>'},
    in__book_dot_opf='<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
    '<metadata><dc:title>A manual</dc:title></metadata><manifest><item id="b" href="two.xhtml"/>'
    '<item id="a" href="o%20ne.xhtml"/></manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
    **{"in__o ne_dot_xhtml": "<h2>Opening</h2><p>Turn the brass valve.</p>"},
    in__two_dot_xhtml="<p>The end.</p>")
NOTEBOOK = json.dumps({"cells": [
    {"cell_type": "markdown", "source": ["## Opening\n", "\n", "Turn the brass valve."]},
    {"cell_type": "code", "source": "open()", "outputs": [
        {"data": {"image/png": "iVBORw0KGgo" * 99}}, {"data": {"image/png": "iVBO", "text/plain": ["4 bar"]}}]}]}).encode()
MAIL = b"""From: =?utf-8?q?J=C3=B6rg?= <j@example.org>
Subject: =?utf-8?b?VmVudGlsZSDDtmZmbmVu?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=x

--x
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Drehen Sie gr=F6=DFere Ventile.
--x
Content-Type: application/pdf
Content-Disposition: attachment; filename="plan.pdf"

JVBERi0=
--x--
"""
MAILBOX = b"From a Sat Jan 3 01:05:34 1996\n" + MAIL + b"\nFrom b Sat Jan 3 01:05:34 1996\nSubject: Second\n\nThe end.\n"
SUBTITLES = b"1\n00:01:02,500 --> 00:01:04,000\nTurn the brass valve.\n\n2\n00:02:00,000 --> 00:02:01,000\nThe end.\n"


def workbook():
    """Return a workbook as openpyxl writes it."""
    book = openpyxl.Workbook()
    book.active.title = "Valves"
    for row in (["Valve", "Tested", "bar"], ["087", datetime.datetime(2026, 3, 1), 4.5]):
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


@pytest.mark.parametrize(("name", "data", "says", "not_there"), [
    ("a.docx", DOCX, ["## Opening", "Turn the brass valve.", "| Valve | Pressure |", "| 087 | 4 bar |"], "old"),
    ("a.odt", ODT, ["## Opening", "Turn the brass valve.", "| Valve | Pressure |", "| 087 | 4 bar |"], "xml"),
    ("a.epub", EPUB, ["## Opening", "Turn the brass valve.", "The end."], "<p>"),
    ("a.ipynb", NOTEBOOK, ["## Opening", "Turn the brass valve.", "```python", "open()", "4 bar"], "iVBO"),
    ("a.eml", MAIL, ["From: Jörg <j@example.org>", "Subject: Ventile öffnen", "Drehen Sie größere Ventile.",
                     "Attached: plan.pdf"], "JVBER"),
    ("a.mbox", MAILBOX, ["# Ventile öffnen", "Drehen Sie größere Ventile.", "# Second", "The end."], "JVBER"),
    ("a.csv", b'Valve;Note\r\n087;"two\nlines"\r\n', ["| Valve | Note |", "| 087 | two lines |"], '"'),
    ("a.tsv", b"Valve\tbar\n087\t4, or 5\n", ["| Valve | bar |", "| 087 | 4, or 5 |"], "\t"),
    ("a.xlsx", workbook(), ["# Valves", "| Valve | Tested | bar |", "| 087 | 2026-03-01 | 4.5 |"], "00:00"),
    ("a.json", b'[{"valve": {"name": "087"}}, {"valve": {"name": "088"}}]', ["valve.name: 087", "valve.name: 088"], "{"),
    ("a.jsonl", b'{"valve": "087", "bar": [4, 5]}\n{"valve": "088"}\n', ["valve: 087; bar.0: 4; bar.1: 5", "valve: 088"], "{"),
    ("a.srt", SUBTITLES, ["[00:01:02]", "Turn the brass valve.", "[00:02:00]", "The end."], "-->"),
])
def test_documents_become_texts(tmp_path, name, data, says, not_there):
    (tmp_path / name).write_bytes(data)
    text = batos.read_file(tmp_path / name, 1 << 20).text
    found = [line for line in text.splitlines() if line in says]
    assert found == says and not_there not in text


def test_a_row_stands_where_its_file_has_it():
    lines = batos._read_csv(b'Valve,Note\n087,"two\nlines"\n088,x\n', "a.csv").text.split("\n")
    assert lines == ["| Valve | Note |", "| 087 | two lines |", "", "| 088 | x |"]
    assert batos._read_mail(MAIL, "a.eml").metadata == {"title": "Ventile öffnen", "notes": ["attachments not learnt: plan.pdf"]}
    assert batos._read_epub(EPUB, "a.epub").metadata == {"title": "A manual"}


BILLION = """<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><w:document><w:p>&b;</w:p></w:document>"""


@pytest.mark.parametrize(("ending", "data", "says"), [
    (".docx", zipped(word__document_dot_xml=BILLION), "EntitiesForbidden"), (".docx", DOCX[:-30], "damaged"),
    (".epub", zipped(a="b"), "container.xml"), (".json", b"[" * 100_000, "RecursionError"), (".ipynb", b"{}", "cells"),
    (".xlsx", b"PK", "damaged"), (".mbox", b"", ""),
])
def test_a_hostile_document_costs_itself_alone(ending, data, says):
    told = batos._parsed(data, "a" + ending)
    assert says in told["error"] if says else not told["text"].strip()


@pytest.mark.parametrize(("name", "kind", "by_look"), [
    ("a.md", "markdown", False), ("a.MD.GZ", "markdown", False), ("a.csv.xz", "table", False), ("a.txt.bz2", "text", False),
    ("chrony.conf", "code", False), ("README", "text", True), ("README.Debian.gz", "text", True),
    ("README.md", "markdown", False), ("changelog.Debian.amd64.gz", "text", True), ("NEWS-2.0.old", "text", True),
    ("copyright", "text", True), ("Makefile", "text", True), ("dot.d/file", "text", True),
    ("newsletter.dat", None, False), ("a.tar.gz", None, False),
    ("README.tar.xz", None, False), ("a.tgz", None, False), ("a.gz.dat", None, False), ("photo.png", None, False),
    ("a.xyz.gz", None, False), ("chrony.conf.5", "text", True), ("rsync.1.gz", "text", True),
    ("openssl-req.1ssl.xz", "text", True), ("libm.so.6", "text", True), ("a.10", None, False), ("a.7z", None, False)])
def test_the_name_of_a_file_tells_its_kind_through_what_it_is_packed_with(name, kind, by_look):
    told = batos.named_so(name)
    assert ((told.format and told.format.kind), told.by_look) == (kind, by_look)


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packing", PACKERS)
def test_what_is_packed_is_read_as_what_it_is_and_not_unpacked_beyond_what_a_file_may_have(tmp_path, packing):
    pack, path = PACKERS[packing], tmp_path / ("a.csv" + packing)
    path.write_bytes(pack(b"Valve,Note\n") + pack(b"087,brass\n"))               # of two parts, as `cat` joins them
    assert batos.read_file(path, 1000).text == "| Valve | Note |\n| 087 | brass |"
    path.write_bytes(pack(bytes(10_000_000)))
    with pytest.raises(batos.BadRequest, match=r"a.csv.* unpacks to more than 1,000,000 bytes.*source_max_mb"):
        batos.read_file(path, 1000, 1_000_000)
    path.write_bytes(pack(b"Valve,Note\n" * 99)[:40])
    with pytest.raises(batos.BadRequest, match="does not unpack"):
        batos.read_file(path, 1000)


@pytest.mark.parametrize(("data", "is_text"), [
    ("Größe".encode(), True), ("Größe".encode("utf-16"), True), ("Größe".encode("latin-1"), False), (b"ab\0c", False),
    (b"\x7f\x1b\x02 x", False), (b"", False), (b"-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n", False)])
def test_what_a_name_leaves_open_the_first_bytes_tell(tmp_path, data, is_text):
    (tmp_path / "a").write_bytes(data)
    for packing, pack in PACKERS.items():
        (tmp_path / f"a{packing}").write_bytes(pack(data))
    assert {batos.is_text_file(path) for path in tmp_path.iterdir()} == {is_text} and not batos.is_text_file(tmp_path / "none")


def test_a_beginning_that_is_cut_or_damaged_is_looked_at_all_the_same(tmp_path):
    for start in range(4):                            # a character is cut
        (tmp_path / "a").write_bytes(b"x" * start + "ä€".encode() * 5000)
        assert batos.is_text_file(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text" * 9)[:-4])
    (tmp_path / "b.gz").write_bytes(b"text")
    assert batos.is_text_file(tmp_path / "a.gz") and not batos.is_text_file(tmp_path / "b.gz")


def test_what_unpacks_to_too_much_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(batos, "_ARCHIVE_MAX_BYTES", 100)
    assert "unpacks to" in batos._parsed(ODT, "a.odt")["error"]


LEGACY = [
    ("cp932", "圧力計の針がゼロを指すまで、真鍮のバルブを三回まわしてください。"),
    ("gb18030", "请将黄铜阀门旋转三次,直到压力表的指针归零。"),
    ("koi8_r", "Поверните латунный клапан три раза."), ("cp1251", "Поверните латунный клапан три раза."),
    ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy; otočte ventilem."),
    ("cp1252", "Drehen Sie größere Ventile – bis zur Öffnung."), ("cp1252", "Größe"),
]


@pytest.mark.parametrize(("encoding", "said"), LEGACY)
def test_an_encoding_that_is_guessed_is_told(encoding, said):
    text, metadata = batos.read_text(said.encode(encoding), "a.txt")
    assert text == said and metadata["encoding"] == encoding and encoding in metadata["notes"][0]
    assert batos.read_text(said.encode(), "a.txt").metadata == {}


def test_pages_of_a_pdf_that_hold_no_text_are_named(tmp_path):
    data = pdf_of("The brass valve is hyphen-) ' (ated well.", "", "", "The pump.", "")
    text, metadata = batos._read_pdf(data, "a.pdf")
    assert metadata["notes"] == ["3 of 5 pages are images, not learnt: 2-3, 5"]


def test_words_parted_at_the_end_of_a_line_are_joined_and_compounds_keep_their_hyphen():
    joined = batos.without_hyphens("a hyphen-\nated word, Jean-\nPaul, 3-\n4")
    assert joined == "a hyphenated\nword, Jean-\nPaul, 3-\n4"
    text = "A comma and separated cells. A comma-\nseparated list, state-of-the-\nart infor-\nmation."
    assert batos.without_hyphens(text).split("\n")[1:] == ["list, state-of-the-art", "information.", ""]
    german = "Das Paket und die Verwaltung sind hier. Die Paket-\nverwaltung ist gut."
    assert batos.without_hyphens(german).endswith("Die Paketverwaltung\nist gut.")


def test_words_of_a_line_that_is_set_tight_are_read_apart():
    shown = ["Eine", -220, "Pump", -40, "e", 20, "und", -420, "mehr", -180.5]
    batos._widen_gaps(shown)
    assert shown == ["Eine", -300, 80, "Pump", -40, "e", 20, "und", -420, "mehr", -300.0, 119.5]


def columns_of(left, right):
    """Return what `pdf_of` shows as two columns, told line by line across both, below a line that is full."""
    told = "The valve and the pump of the plant, told in one line above both of the columns"
    for n, row in enumerate(zip(left, right, strict=True)):
        told += "".join([f") Tj 1 0 0 1 {x} {680 - 14 * n} Tm ({text}" for x, text in zip((72, 320), row, strict=True)])
    return told


def test_columns_that_a_pdf_tells_line_by_line_are_read_one_after_the_other():
    left = [f"left line {n} of the brass valve in" for n in range(9)]
    right = [f"right line {n} of the copper pump in" for n in range(9)]
    lines = batos._read_pdf(pdf_of(columns_of(left, right)), "a.pdf").text.split("\n")
    assert lines[1:] == left + right and lines[0].startswith("The valve and the pump")
    table = batos._read_pdf(pdf_of(columns_of(["cell"] * 9, right)), "a.pdf").text
    assert table.count("cell") == 9 and "cell" in table.split("\n")[-1]          # rows stay rows


def test_heads_and_numbers_of_pages_do_not_stand_in_sentences():
    told = ["The valve opens and\nturns", "the other way. It is brass.", "It is \ufb01ne", "Then it shuts."]
    pages = [f"The manual\n{text}\n{n}" for n, text in enumerate(told, 7)]
    text, starts = batos.joined_pages(batos.without_running_heads(pages))
    assert text == "The manual\nThe valve opens and\nturns\nthe other way. It is brass.\n\nIt is \ufb01ne\n\nThen it shuts."
    first = [text.split("\n")[start - 1] for start in starts]
    assert first == ["The manual", "the other way. It is brass.", "It is \ufb01ne", "Then it shuts."]
    heads = [f"Die Pumpe {n}/ 248\nAbsatz {n * n}" for n in range(13, 18)]
    assert batos.without_running_heads(heads)[1:] == [f"Absatz {n * n}" for n in range(14, 18)]
    assert batos.without_running_heads(["12\na", "40\nb", "7\nc"]) == ["12\na", "40\nb", "7\nc"]       # no numbers of pages


NAMES, HEADER = ("Name", "Opening pressure"), "| Name | Opening pressure |"
VALVES = [(f"Valve {n:03}", f"{n * 3 % 17} bar") for n in range(1, 121)]
MARKDOWN_TABLE = "\n".join(["# Plant", "", "All valves:", "", HEADER, "|---|---|", *map(batos.row_line, VALVES), "", "The end."])
CSV_TABLE = "\n".join(map(",".join, [NAMES, *VALVES]))
HTML_TABLE = "\n".join(["<table>", *("<tr><td>" + "<td>".join(row) + "</tr>" for row in [NAMES, *VALVES]), "</table>"])


@pytest.mark.parametrize(("name", "text"), [
    ("a.md", MARKDOWN_TABLE), ("a.csv", batos._read_csv(CSV_TABLE.encode(), "a.csv").text),
    ("a.html", batos._read_html(HTML_TABLE.encode(), "a.html").text),
])
def test_a_row_of_a_long_table_is_found_and_quoted_with_its_header(name, text):
    catalog = batos.new_catalog()
    batos.index_document_(catalog, name, text)
    drafts = batos.cut_text(text, batos.guess_kind(text, name))
    rows = [draft for draft in drafts if "| Valve 0" in draft.text and HEADER not in draft.text]
    assert len(rows) > 1 and {draft.header for draft in rows} == {HEADER}
    assert all(draft.text.startswith("|") and draft.text.rstrip().endswith("|") for draft in rows)
    chunk = batos.search_(catalog, "opening pressure of Valve 087")["results"][0]["chunk"]
    assert "| Valve 087 | 6 bar |" in chunk["text"] and chunk["header"] == HEADER
    best = batos.find_evidence(catalog, "What is the opening pressure of Valve 087?", batos.Recall())["evidence"][0]
    assert best["text"] == f"{HEADER}\n| Valve 087 | 6 bar |"
    assert text.splitlines()[best["lines"][0] - 1] == "| Valve 087 | 6 bar |" and best["lines"][0] == best["lines"][1]
