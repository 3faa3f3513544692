"""`learn`: what of folders is learnt, what is left out and told; one file, one document; texts larger than a message."""

import contextlib
import gzip
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
import zmq
from test_formats import pdf_of

import batos

SENTENCE = "The {} valve stands in the cellar.\n"


@pytest.fixture
def learn(daemon, capsys):
    """A function that runs `learn` against a daemon; it answers (status, all that was told). `learn.endpoint` is the daemon's."""
    def run(*arguments):
        capsys.readouterr()
        status = batos.main(["learn", *map(str, arguments), "--endpoint", run.endpoint])
        told = capsys.readouterr()
        return status, told.out + told.err
    run.endpoint = daemon().endpoint
    return run


def documents(endpoint, **fields):
    """Return {doc_id: row} of what was taught."""
    with batos.Client(endpoint) as client:
        return {row["doc_id"]: row for row in client.call("list_documents", taught=True, **fields)["results"]}


def hits(endpoint, query):
    with batos.Client(endpoint) as client:
        return client.call("search_memory", query=query)["results"]


# A file's error is that file's alone


def hostile_folder(folder):
    """Fill a folder with two good files, and between them whatever must not stop the second one."""
    (folder / "a.md").write_text(SENTENCE.format("first"))
    (folder / "z.md").write_text(SENTENCE.format("last"))
    with open(os.fsencode(folder) + b"/bad\xff.txt", "w") as file:
        file.write("a name that is no UTF-8")
    (folder / "new\nline.txt").write_text("a name of two lines")
    (folder / "broken.pdf").write_bytes(pdf_of("The pump.")[:200])
    (folder / "large.log").write_text("a line of a log\n" * 2000)
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.txt"))


def test_whatever_a_folder_holds_all_else_is_learnt_and_each_error_is_told_at_the_end(daemon, capsys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("h")                # a socket's path is short
    hostile_folder(folder)
    endpoint = daemon("--document-max-mb", "0.01").endpoint
    status = batos.main(["learn", str(folder), "--endpoint", endpoint])
    out, err = capsys.readouterr()
    assert status == 1 and "2 learnt, 6 failed" in out
    ends = [line for line in err.splitlines() if line.startswith("batos: ")]
    for part in ("bad\ufffd.txt: its name is not UTF-8", "new line.txt: its name", "broken.pdf does not read as PDF",
                 "large.log has 32,000 bytes of text and may have 10,000; split it, or raise the setting document_max_mb",
                 "pipe.txt is a FIFO", "s.txt cannot be read (it is a socket)"):
        assert any(part in line for line in ends), (part, ends)
    assert len(ends) == 6 and "EOF marker" not in err
    assert {pathlib.Path(name).name for name in documents(endpoint)} == {"a.md", "z.md"}


def test_an_error_of_one_file_alone_has_a_status_too(learn, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\0\0\0\0\0")
    status, told = learn(tmp_path / "photo.png")
    assert status == 1 and "photo.png is not text" in told


def test_a_file_larger_than_a_source_may_be_is_not_read(tmp_path):
    with open(tmp_path / "large.pdf", "wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(batos.BadRequest, match="300,000,000 bytes and may have 200,000,000; .* source_max_mb"):
        batos.read_file(tmp_path / "large.pdf", 8_000_000)


def test_a_large_file_of_little_text_is_learnt(learn, tmp_path):
    whole = pdf_of("The brass valve.")
    (tmp_path / "large.pdf").write_bytes(whole + b"\n%" + b"x" * 40_000_000 + whole[whole.rindex(b"\nstartxref"):])
    status, told = learn(tmp_path / "large.pdf")
    assert status == 0 and hits(learn.endpoint, "brass valve"), told


def test_an_interrupt_is_told_as_a_status(learn, tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text(SENTENCE.format("one") * 300)           # small ones would wait for company
    (tmp_path / "b.md").write_text("Two.")
    read = batos.read_file

    def interrupted(path, *bounds, **more):
        if path.name == "b.md":
            raise KeyboardInterrupt
        return read(path, *bounds, **more)
    monkeypatch.setattr(batos, "read_file", interrupted)
    status, told = learn(tmp_path)
    assert status == 130 and "1 learnt" in told and "stopped; what was learnt stays" in told


def test_a_path_is_opened_once_and_no_link_is_followed_on_the_way(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inner", outside):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(f"of {folder.name}")
    opener = batos.opener_below(root)
    assert batos.read_file(root / "inner" / "a.txt", 100, opener=opener).text == "of inner"
    shutil.rmtree(root / "inner")
    (root / "inner").symlink_to(outside)                 # as somebody does between the check and the opening
    with pytest.raises(batos.BadRequest, match="cannot be read"):
        batos.read_file(root / "inner" / "a.txt", 100, opener=opener)
    (root / "b.txt").symlink_to(outside / "a.txt")
    with pytest.raises(batos.BadRequest, match="cannot be read"):
        batos.read_file(root / "b.txt", 100, opener=opener)


# What parses files


@pytest.fixture
def parser():
    one = batos.Parser()
    yield one
    one.close()


def test_what_parses_is_a_process_that_serves_many_files_and_ends_with_its_parser(parser):
    told = [parser.parse(pdf_of(f"Page {number}."), "a.pdf").text for number in range(3)]
    assert told == ["Page 0.", "Page 1.", "Page 2."]
    process = parser._process
    with pytest.raises(batos.BadRequest, match="does not read as PDF"):
        parser.parse(b"%PDF-1.4 nothing", "a.pdf")
    with pytest.raises(batos.BadRequest, match="not text") as refused:
        parser.parse(bytes(range(32)) * 99, "a.html")
    assert refused.value.fields["no_document"] and parser._process is process
    parser.close()
    assert process.returncode is not None
    assert parser.parse(b"plain", "a.txt").text == "plain" and parser._process is None


@pytest.mark.slow
@pytest.mark.parametrize("bound, value, told", [("_PARSE_S", "1", "takes longer than"),
                                                ("_PARSE_BYTES", "1 << 29", "memory|MemoryError")])
def test_a_file_that_takes_too_much_costs_itself_alone(parser, monkeypatch, bound, value, told):
    hostile = f"import batos; batos.{bound} = {value}; read = batos._read_html\ndef taking(data, name):\n" \
              "    if name == 'hostile.html':\n        held = [bytes(1 << 20)]\n" \
               "        while True: held += held * (batos._PARSE_S > 1)\n" \
              "    return read(data, name)\nbatos.FORMATS['.html'] = batos.Format('html', taking)"
    monkeypatch.setattr(batos, "_PARSER", batos._PARSER.replace("import batos;", f"exec({hostile!r});"))
    with pytest.raises(batos.BadRequest, match=told):
        parser.parse(b"<p>x</p>", "hostile.html")
    assert parser.parse(b"<p>fine</p>", "a.html").text.strip() == "fine"


# What is left out


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True,
                   capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A checkout of git in which one file is ignored by its name, a folder by its, one by another repository inside."""
    top = tmp_path / "checkout"
    files = {"a.md": "kept", "secret.md": "ignored", "[x]* :(top).md": "kept", "tracked.log": "tracked though ignored",
             "build/b.md": "ignored",
             ".ssh/notes.txt": "hidden", ".env.txt": "hidden", "data.bin": "{}", "more.bin": "{}", "x.ODS": "x",
             "LICENSE": "free",
             "inner/c.md": "kept", "inner/d.md": "ignored there"}
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / ".gitignore").write_text("secret.md\nbuild/\n*.log\n")
    (top / "inner" / ".gitignore").write_text("d.md\n")
    for folder in (top, top / "inner"):
        git(folder, "init", "-q")
    git(top, "add", "-f", "tracked.log", "a.md")
    return top


def names(harvest, top):
    return sorted(str(path.relative_to(top)) for path in harvest.files)


def test_what_is_hidden_or_ignored_by_git_is_left_out_and_counted(checkout):
    found = batos.Harvest([str(checkout)])
    assert names(found, checkout) == ["LICENSE", "[x]* :(top).md", "a.md", "inner/c.md", "tracked.log"]
    told = "\n".join(found.told())
    assert "of no kind that is learnt: 2 .bin, 1 .ods" in told
    assert re.search(r"left out: 6 hidden, 3 ignored by git \(.*--hidden", told)     # .git, .gitignore twice, .ssh, .env.txt


def test_what_is_named_itself_is_learnt(checkout):
    assert names(batos.Harvest([checkout / ".ssh"]), checkout) == [".ssh/notes.txt"]
    assert names(batos.Harvest([checkout / "build"]), checkout) == ["build/b.md"]
    assert names(batos.Harvest([checkout / "secret.md", checkout / "data.bin"]), checkout) == ["data.bin", "secret.md"]
    every = names(batos.Harvest([checkout], hidden=True), checkout)
    assert {".ssh/notes.txt", ".env.txt", "secret.md", "build/b.md", "inner/d.md"} <= set(every)


def test_no_program_that_a_foreign_checkout_names_is_run(checkout, tmp_path):
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    trap.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(trap))
    assert "secret.md" not in names(batos.Harvest([checkout]), checkout) and not (tmp_path / "ran").exists()


def test_without_git_it_is_told_what_could_not_be_found_out(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    found = batos.Harvest([checkout])
    assert "secret.md" in names(found, checkout) and any("is not left out: " in line for line in found.told())


def test_learn_tells_what_was_left_out(learn, checkout):
    status, told = learn(checkout)
    assert status == 0 and "5 learnt" in told and "2 .bin" in told and "3 ignored by git" in told


DOCS = {"README": "The brass valve opens to the left.", "README.Debian": "The copper valve is shut in winter.",
        "copyright": "Nobody owns the wooden valve.", "NEWS.gz": "The silver valve is new.",
        "FAQ.html.gz": "<p>Is the lead valve old?</p>", "manual.md": "# Valves\n\nThe golden valve is for guests.",
        "program": "\0\1\2", "data.gz": "\0\1\2", "all.tar.gz": "x", "key": "-----BEGIN RSA PRIVATE KEY-----\nx\n", "a.bin": "x"}


def test_a_folder_of_documents_as_systems_have_them_is_learnt(learn, tmp_path):
    """Files without an ending, with words as README before it, and what is compressed."""
    folder = tmp_path / "doc"
    folder.mkdir()
    for name, text in DOCS.items():
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    os.mkfifo(folder / "pipe")
    status, told = learn(folder)
    assert status == 0 and "6 learnt" in told
    assert "of no kind that is learnt: 3 without an ending, 1 .bin, 1 .tar.gz, 1 .gz" in told
    assert [pathlib.Path(hits(learn.endpoint, f"{word} valve")[0]["chunk"]["doc_id"]).name
            for word in ("brass", "copper", "wooden", "silver", "lead", "golden")] == list(DOCS)[:6]
    assert learn(folder / "all.tar.gz")[0] == 1 and learn(folder / "a.bin")[0] == 0   # what is named itself is read as a text


def test_a_folder_of_the_manual_has_one_document_a_page_whatever_leads_to_it(learn, tmp_path):
    """As systems keep one: links, those over a folder of alternatives, pages that only name another, logs that are no pages."""
    folder, others = tmp_path / "man1", tmp_path / "alternatives"
    folder.mkdir()
    others.mkdir()
    page = ".TH VALVE 1\n.SH NAME\nvalve \\- open it\n.SH OPTIONS\n.TP\n.B \\-x\nShuts the brass valve.\n"
    (folder / "valve.1.gz").write_bytes(gzip.compress(page.encode()))
    (others / "tap.1.gz").symlink_to(folder / "valve.1.gz")
    (folder / "tap.1.gz").symlink_to(others / "tap.1.gz")
    (folder / "cock.1.gz").symlink_to("valve.1.gz")
    (folder / "spigot.1").write_text(".so man1/valve.1\n")
    (folder / "valve.log.1").write_text("Nov 30 the valve is stuck\n")
    (folder / "libvalve.so.1").write_bytes(b"\x7fELF\0\0")
    status, told = learn(folder)
    assert status == 0 and "2 learnt" in told and "1 left out" in told and "1 .1" in told
    assert "only leads to the page man1/valve.1" in told
    rows = documents(learn.endpoint)
    assert [pathlib.Path(name).name for name in rows] == ["valve.1.gz", "valve.log.1"]
    row = rows[str(folder / "valve.1.gz")]
    assert (row["title"], row["kind"]) == ("valve(1) - open it", "markdown")
    assert [pathlib.Path(name).name for name in row["metadata"]["names"]] == ["cock.1.gz", "tap.1.gz"]
    found = hits(learn.endpoint, "which option shuts the brass valve")[0]["chunk"]
    assert "-x\nShuts the brass valve." in found["text"] and found["headings"][0] == "valve(1)"


def test_a_file_that_is_compressed_afterwards_keeps_its_document(learn, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text(SENTENCE.format("brass"))
    learn(folder)
    (folder / "a.txt.gz").write_bytes(gzip.compress((folder / "a.txt").read_bytes()))
    (folder / "a.txt").unlink()
    assert "a.txt.gz now" in learn(folder)[1]
    assert list(documents(learn.endpoint)) == [str(folder / "a.txt.gz")]


# One file, one document


def test_five_spellings_of_a_path_are_one_document(learn, tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "pump.md").write_text(SENTENCE.format("brass"))
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    spellings = ["notes/pump.md", "./notes/../notes/pump.md", folder / "pump.md", "link/pump.md", "notes"]
    assert [learn(spelling)[0] for spelling in spellings] == [0] * 5
    assert {name: row["version"] for name, row in documents(learn.endpoint).items()} == {str(folder / "pump.md"): 1}
    (folder / "pump.md").write_text(SENTENCE.format("copper"))
    learn("link/pump.md")
    found = hits(learn.endpoint, "which valve stands in the cellar")
    assert len(found) == 1 and "copper" in found[0]["chunk"]["text"]
    with batos.Client(learn.endpoint) as client:
        client.call("forget", doc_id=str(folder / "pump.md"))
    assert not documents(learn.endpoint) and not hits(learn.endpoint, "valve cellar")


def test_links_are_one_document_with_two_names(learn, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "b.md").write_text(SENTENCE.format("brass"))
    os.link(folder / "b.md", folder / "c.md")
    (folder / "d.md").symlink_to(folder / "b.md")
    learn(folder / "c.md")                               # the name by which it is known stays
    learn(folder)
    rows = documents(learn.endpoint)
    assert {name: row["metadata"]["names"] for name, row in rows.items()} == {
        str(folder / "c.md"): [str(folder / "b.md"), str(folder / "d.md")]}
    capsys.readouterr()
    assert batos.main(["documents", "--endpoint", learn.endpoint]) == 0
    assert ", also named notes/b.md, notes/d.md\n" in capsys.readouterr().out
    assert "already known" in learn(folder)[1] and "already known" in learn(folder / "c.md")[1]


def test_equal_files_stay_two_documents_and_one_hit_that_names_both(learn, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("one.md", "two.md"):
        (folder / name).write_text(SENTENCE.format("brass"))
    learn(folder)
    assert len(documents(learn.endpoint)) == 2
    [row] = hits(learn.endpoint, "brass valve")
    assert row["chunk"]["doc_id"] == str(folder / "one.md") and row["also"] == [f"{folder / 'two.md'}_chunk_0"]
    assert batos.main(["search", "brass valve", "--endpoint", learn.endpoint]) == 0
    assert "also: notes/two.md_chunk_0" in capsys.readouterr().out


def renamed_folder(learn, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "old.md").write_text(SENTENCE.format("brass"))
    (folder / "stays.md").write_text(SENTENCE.format("copper"))
    learn(folder)
    (folder / "old.md").rename(folder / "new.md")
    return folder


def test_a_renamed_file_keeps_its_document_and_that_can_be_undone(learn, tmp_path):
    folder = renamed_folder(learn, tmp_path)
    status, told = learn(folder, "--vanished")
    assert status == 0 and "1 renamed" in told and "2 known already" in told and "gone" not in told
    old, new = str(folder / "old.md"), str(folder / "new.md")
    with batos.Client(learn.endpoint) as client:
        assert documents(learn.endpoint).keys() == {new, str(folder / "stays.md")}
        assert client.call("show_document", doc_id=old)["result"]["doc_id"] == new
        assert client.call("show_document", doc_id=old, version=1)["results"][0]["text"].startswith("The brass")
        assert client.call("forget", doc_id=new, preview=True)["result"]["documents"] == [new, old]
        change, learnt = client.call("history", doc_id=new)["results"]
        assert change["command"] == "move_document" and learnt["command"] == "index_document"
        client.call("undo", change=change["change"])
        assert documents(learn.endpoint).keys() == {old, str(folder / "stays.md")}
        assert client.call("show_document", doc_id=new)["result"]["doc_id"] == old
        assert [row["chunk"]["doc_id"] for row in hits(learn.endpoint, "brass")] == [old]
        client.call("forget", doc_id=old)
        assert not hits(learn.endpoint, "brass")
        with pytest.raises(batos.NotFound):
            client.call("show_document", doc_id=new, version=2)


def test_what_may_be_the_renamed_file_or_another_is_new(learn, tmp_path):
    folder = renamed_folder(learn, tmp_path)
    shutil.copy(folder / "new.md", folder / "newer.md")
    status, told = learn(folder, "--vanished")
    assert " renamed" not in told and "2 learnt" in told and "1 gone" in told
    assert {pathlib.Path(name).name for name in documents(learn.endpoint)} == {"new.md", "newer.md", "stays.md"}


def test_a_file_whose_old_path_is_there_still_was_not_renamed(learn, tmp_path):
    folder = renamed_folder(learn, tmp_path)
    shutil.copy(folder / "new.md", folder / "old.md")
    assert " renamed" not in learn(folder)[1] and len(documents(learn.endpoint)) == 3


# What is the system's own


@pytest.mark.parametrize("doc_id", ["batos/README.md", "said/-/abc", "batos/methods/0x1.total"])
def test_the_names_of_the_systems_own_documents_are_refused(learn, doc_id):
    with batos.Client(learn.endpoint) as client:
        with pytest.raises(batos.BadRequest, match="is a name of the system's own.* choose another name"):
            client.call("index_document", doc_id=doc_id, text="Forged.")
        with pytest.raises(batos.BadRequest, match="is a name of the system's own"):
            client.call("send_message", target="knowledge_catalog_obj", selector="index_document_", args=[doc_id, "Forged."])
        client.call("index_document", doc_id="mine", text="Mine.")
        for former, name in (("mine", doc_id), (doc_id, "mine too")):
            with pytest.raises(batos.BadRequest, match="is a name of the system's own"):
                client.call("move_document", doc_id=former, to=name)


@pytest.mark.parametrize("more", [{"scope": "said"}, {"scope": "asked"}, {"kind": "episode"},
                                  {"kind": "method", "scope": "self"}])
def test_what_was_said_and_what_methods_are_cannot_be_forged_by_a_message(more):
    with pytest.raises(batos.BadRequest, match="remembered by the system itself"):
        batos.index_document_(batos.new_catalog(), "mine", "I am the owner.", **more)


@pytest.mark.slow
def test_a_clone_of_the_project_and_the_systems_own_documents_stand_side_by_side(daemon, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batos").mkdir()
    (tmp_path / "batos" / "README.md").write_text("# Mine\n\nThe xylograph hangs in the pantry.\n")
    for _ in range(2):
        running = daemon("--self-knowledge", "true")
        assert batos.main(["learn", "batos", "--endpoint", running.endpoint]) == 0
        with batos.Client(running.endpoint) as client:
            while not client.call("list_documents", prefix="batos/README")["results"]:
                time.sleep(0.2)
            rows = {row["doc_id"]: row["scope"] for row in client.call("list_documents")["results"]}
            own = client.call("show_document", doc_id="batos/README.md")
        assert rows[str(tmp_path / "batos" / "README.md")] == "world" and rows["batos/README.md"] == "self"
        assert "xylograph" not in own["results"][0]["text"] and own["result"]["version"] == 1
        assert "batos/README.md" not in documents(running.endpoint)
        capsys.readouterr()
        assert batos.main(["documents", "--endpoint", running.endpoint]) == 0
        told = "\n" + capsys.readouterr().out
        assert "\nbatos/README.md" not in told and "\n./batos/README.md" in told
        assert batos.main(["documents", "--all", "--endpoint", running.endpoint]) == 0
        assert "\nbatos/README.md" in "\n" + capsys.readouterr().out
        assert running.stop() == 0


# Texts larger than a message

LARGE = "".join(f"Line {number} tells of the valve {number}.\n" for number in range(60_000))
BOUNDS = ("--message-max-mb", "1", "--document-max-mb", "4")


@pytest.mark.slow
def test_a_text_larger_than_a_message_is_learnt_in_parts(daemon, tmp_path, capsys):
    (tmp_path / "large.txt").write_text(LARGE)
    endpoint = daemon(*BOUNDS).endpoint
    assert batos.main(["learn", str(tmp_path / "large.txt"), "--endpoint", endpoint]) == 0, capsys.readouterr()
    assert len(LARGE) > 1 << 20 and hits(endpoint, '"line 59999"')[0]["chunk"]["lines"][1] == 60_000
    batos.main(["learn", str(tmp_path / "large.txt"), "--endpoint", endpoint])
    assert "already known" in capsys.readouterr().out
    assert list((tmp_path / "live_image.fs.parts").glob("*")) == []


def test_parts_outlive_a_kill_are_out_of_sight_and_become_one_version(daemon):
    texts, fields = ["The brass valve. ", "The copper pump. ", "The silver lamp."], {"upload": "one-upload", "doc_id": "parts"}
    running = daemon()
    with batos.Client(running.endpoint) as client:
        for number in (0, 1):
            client.call("index_part", upload="one-upload", number=number, text=texts[number])
    running.stop(kill=True)
    endpoint = daemon().endpoint
    with batos.Client(endpoint) as client:
        assert client.call("index_part", upload="one-upload", number=0, text=texts[0])["result"]["held"] == [0, 1]
        assert not documents(endpoint) and not hits(endpoint, "brass valve")
        with pytest.raises(batos.NotFound, match="of 3 parts these are not here, or no longer: 2") as missing:
            client.call("index_document", parts=3, **fields)
        assert missing.value.fields["missing"] == [2]
        client.call("index_part", upload="one-upload", number=2, text=texts[2])
        first = client.call("index_document", parts=3, idempotency_key="k" * 20, **fields)
        assert client.call("index_document", parts=3, idempotency_key="k" * 20, **fields)["change"] == first["change"]
        assert documents(endpoint)["parts"]["version"] == 1 and hits(endpoint, "silver lamp")
        with pytest.raises(batos.NotFound):
            client.call("index_document", parts=3, **fields)


def test_parts_are_bounded_of_one_owner_and_go_after_a_day(tmp_path):
    parts = batos.Parts(str(tmp_path / "i.fs"), 10)
    assert parts.put("ann", "upload-1", 0, "12345") == [0] and parts.put("ann", "upload-1", 0, "1234567890") == [0]
    with pytest.raises(batos.BadRequest, match="document_max_mb"):
        parts.put("ann", "upload-1", 1, "x")
    with pytest.raises(batos.NotFound):
        parts.joined("bob", "upload-1", 1)
    for number in range(2, 5):
        parts.put("ann", f"upload-{number}", 0, "1234567890")
    with pytest.raises(batos.Busy):
        parts.put("ann", "upload-5", 0, "x")
    batos.sweep_parts(tmp_path / "i.fs")
    assert parts.joined("ann", "upload-1", 1) == "1234567890"
    day_ago = os.stat(parts.folder).st_mtime - batos._PARTS_KEPT_S
    for folder in parts.folder.glob("*"):
        os.utime(folder, (day_ago, day_ago))
    batos.sweep_parts(tmp_path / "i.fs")
    assert list(parts.folder.glob("*")) == []


# A daemon that is not there


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_where_nothing_listens_that_is_said_at_once(capsys):
    with batos.Client(f"tcp://127.0.0.1:{free_port()}", 3600) as client:      # an hour's patience is for what listens
        with pytest.raises(batos.NoReply, match="nothing answers") as told:
            client.call("health")
    assert told.value.fields["gone"]
    for command in (["ask", "who?"], ["status"], ["documents"]):
        assert batos.main([*command, "--endpoint", f"tcp://127.0.0.1:{free_port()}"]) == 1
        assert "nothing answers" in capsys.readouterr().err


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_lost_connection_is_told_long_before_the_patience_ends(comes_back):
    """Also where it is made anew before anybody looks."""
    with zmq.Context() as context:
        sockets = [context.socket(zmq.ROUTER)]
        port = sockets[0].bind_to_random_port("tcp://127.0.0.1")

        def take_one():
            sockets[0].recv_multipart()
            sockets[0].close(0)
            if comes_back:
                sockets.append(context.socket(zmq.ROUTER))
            while comes_back and not sockets[1].getsockopt(zmq.LAST_ENDPOINT).strip(b"\0"):
                with contextlib.suppress(zmq.ZMQError):
                    sockets[1].bind(f"tcp://127.0.0.1:{port}")
        thread = threading.Thread(target=take_one)
        thread.start()
        with batos.Client(f"tcp://127.0.0.1:{port}", 20) as client:
            with pytest.raises(batos.NoReply, match="was lost before the reply"):
                client.call("health")
        thread.join()
        for each in sockets:
            each.close(0)


def test_learn_goes_on_when_the_daemon_comes_back(daemon, tmp_path, monkeypatch, capsys):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    (tmp_path / "notes").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "notes" / name).write_text(SENTENCE.format(name))
    running, read = daemon("--endpoint", endpoint), batos.read_file

    def killing(path, *bounds, **more):
        if path.name == "b.md":
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
            threading.Thread(target=daemon, args=("--endpoint", endpoint)).start()
        return read(path, *bounds, **more)
    monkeypatch.setattr(batos, "read_file", killing)
    assert batos.main(["learn", str(tmp_path / "notes"), "--endpoint", endpoint]) == 0, capsys.readouterr()
    assert len(documents(endpoint)) == 2


def test_a_start_on_a_port_that_is_taken_leaves_no_image_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert batos.main(["--endpoint", f"tcp://127.0.0.1:{taken.getsockname()[1]}"]) == 1
    assert "cannot listen on" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# What the command line says


@pytest.mark.parametrize("words, told", [
    (["ask", "Who?", "--conversation", "a/b"], "--conversation 'a/b' is not right: a conversation's name is a letter, "),
    (["search", "pump", "--max-results", "1000"], "--max-results 1000 is not right: Input should be less than or equal to 100"),
    (["search", "pump", "--since", "soon"], "--since 'soon' is not right: a time is ISO 8601"),
    (["search", "pump", "--conversation", "nobody"], "there is no such conversation: 'nobody'; "),
    (["forget", "--conversation", "nobody"], "there is no such conversation: 'nobody'; "),
    (["forget"], "say what to forget: either a document's name, or --conversation NAME, or --matching WORDS"),
    (["documents", "--limit", "0"], "--limit 0 is not right: Input should be greater than or equal to 1"),
])
def test_an_error_speaks_of_the_command_line(daemon, words, told, capsys):
    assert batos.main([*words, "--endpoint", daemon(core=0).endpoint]) == 1
    assert f"batos: {told}" in capsys.readouterr().err


def test_a_document_is_forgotten_by_any_spelling_of_its_path(learn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pump.md").write_text(SENTENCE.format("brass"))
    learn("pump.md")
    for command, told in ((["documents"], "pump.md  markdown"), (["search", "brass"], "1. pump.md:1  score"),
                          (["forget", "pump.md"], "pump.md\n"), (["history", "pump.md", "--document"], "documents[")):
        capsys.readouterr()                              # what is below the current folder is told from there on
        assert batos.main([*command, "--endpoint", learn.endpoint]) == 0
        assert told in capsys.readouterr().out
    assert batos.main(["forget", "./pump.md", "--yes", "--endpoint", learn.endpoint]) == 0
    assert not documents(learn.endpoint) and not hits(learn.endpoint, "brass")


# Files that change


def test_a_file_that_changed_is_learnt_once_it_is_still(tmp_path):
    path, watch = tmp_path / "a.md", batos.Watch()
    path.write_text("one")
    watch.note([path])
    assert watch.due([path]) == watch.due([path]) == []
    path.write_text("two, longer")
    assert watch.due([path]) == [] and watch.due([path]) == [path] and watch.due([path]) == []
    os.utime(path, ns=(1, 1))                            # touched, not changed
    assert watch.due([path]) == watch.due([path]) == []
    assert watch.due([path, tmp_path / "gone.md"]) == []


def test_watching_learns_what_changes_until_it_is_interrupted(learn, tmp_path, monkeypatch):
    path, looks = tmp_path / "pump.md", []
    path.write_text(SENTENCE.format("brass"))
    monkeypatch.setenv("BATOS_WATCH_FOLDERS", str(tmp_path))

    def look_again(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            path.write_text(SENTENCE.format("copper, which is longer"))
        if len(looks) == 6:
            raise KeyboardInterrupt
    monkeypatch.setattr(batos.time, "sleep", look_again)
    status, told = learn("--watch")
    monkeypatch.undo()
    assert status == 0 and "Ctrl-C ends it" in told and documents(learn.endpoint)[str(path)]["version"] == 2
    with batos.Client(learn.endpoint) as client:
        assert batos._changes_since_learnt(client, [{"doc_id": str(path)}, {"doc_id": "batos/README.md"}]) == {}
        path.write_text("Something else.")
        future_s = time.time() + 100
        os.utime(path, (future_s, future_s))
        told = batos._changes_since_learnt(client, [{"doc_id": str(path)}])[str(path)]
        assert re.fullmatch(r"changed since learnt on \d{4}-\d\d-\d\d", told)
        item = {"doc_id": str(path), "lines": [1, 1], "text": "The pump.", "pages": [3, 3]}
        [line, *_] = batos.told_answer({"answer": "a", "evidence": [item]}, {str(path): told})
        assert line.startswith(f"[1] {batos.near_name(str(path))}:1, page 3 ({told})  The pump.")


def test_what_is_learnt_of_the_system_itself_is_in_scope_self(learn, tmp_path, capsys):
    path = tmp_path / "self.md"
    path.write_text("The zebrafinch module keeps the account of adapters.")
    assert learn("--self", path)[0] == 0
    with batos.Client(learn.endpoint) as client:
        reply = client.call("search_memory", query="zebrafinch module")
        assert reply["results"] == [] and "in scope self" in reply["details"]
        assert client.call("search_memory", query="zebrafinch module", scope="self")["results"][0]["chunk"]["doc_id"] == str(path)
        shown = client.call("show_document", doc_id=f"{path}_chunk_0")
        assert shown["results"][0]["text"].startswith("The zebrafinch") and shown["result"]["doc_id"] == str(path)
        with pytest.raises(batos.NotFound):
            client.call("show_document", doc_id=f"{path}_none_chunk_0")
    capsys.readouterr()
    assert batos.main(["search", "zebrafinch module", "--endpoint", learn.endpoint]) == 0
    assert "in scope self" in capsys.readouterr().out


def test_learning_nothing_is_refused(learn):
    status, told = learn()
    assert status and "name files or folders to learn" in told
