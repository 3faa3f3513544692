"""Formats: what files become texts, with their titles, headings and lines; and `learn` over folders of them."""

import io
import pathlib

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
    monkeypatch.setattr(batos, "CARRY_WORDS", 1)
    monkeypatch.setattr(batos, "CHUNK_FLOOR_WORDS", 1)
    found = headings(RST, "rst")
    assert ("The manual", "Opening") in found and ("The manual", "Opening", "Details") in found
    assert found[-1] == ("The manual", "Closing")
    kinds = [(block.kind, RST[block.start:block.end].strip()[:24]) for block in batos._blocks(batos._Lines(RST), "rst")]
    assert ("code", ".. contents::\n   :local:") in kinds and ("code", "Turn the brass valve as ") in kinds
    assert [text for kind, text in kinds if kind == "heading"][0].startswith("=====")
    assert any(kind == "prose" and text.startswith(".. note::") for kind, text in kinds)


def test_source_code_is_cut_at_its_definitions(monkeypatch):
    monkeypatch.setattr(batos, "CARRY_WORDS", 1)
    monkeypatch.setattr(batos, "CHUNK_FLOOR_WORDS", 1)
    found = headings(PYTHON, "code")
    assert ("class Valve", "def turn") in found and found[-1] == ("async def close",)


TEXTS = st.text(st.sampled_from("a= -~*.:#\n\t`>_é<&|\r"), max_size=300)


@given(TEXTS, st.sampled_from(sorted(batos._RULES)))
@settings(max_examples=300)
def test_no_kind_of_text_loses_anything(text, kind):
    assert_cut_well(text, kind)


@pytest.mark.parametrize("kind", sorted(batos._RULES))
@pytest.mark.parametrize("unit", ["a::\n", "==\na\n==\n", "def f\n", ".. a::\n  b\n\n", " " * 50 + "a::\n\n", "<p>", "-\n"])
def test_no_kind_takes_more_than_a_moment(kind, unit):
    batos.cut_text(unit * 4000, kind)


def test_a_page_of_html_keeps_its_lines_headings_and_title(tmp_path):
    path = tmp_path / "a.HTML"
    path.write_text(HTML)
    text, metadata = batos.read_file(path, 1 << 20)
    lines = text.split("\n")
    assert metadata == {"title": "The manual"} and len(lines) == len(HTML.split("\n"))
    assert lines[3] == "# Opening & closing" and lines[4].split() == ["Turn", "the", "brass"] and lines[5] == "valve."
    assert lines[7] == "## Steps" and lines[9:11] == ["- one", "- two"] and "no text" not in text and "color" not in text


@given(st.text(st.sampled_from("<>/ahpscrit1\n&;!-\"'= "), max_size=200))
@settings(max_examples=300)
def test_any_html_is_read_line_by_line(text):
    assert batos._read_html(text.encode(), "x.html").text.count("\n") == text.count("\n")


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
    ("", "# one\n\ntwo\n", "markdown"), ("a.py", "x = 1\n=====\n.. note::\n", "code")])
def test_the_kind_of_a_text_is_guessed(name, text, kind):
    assert batos.guess_kind(text, name) == kind
