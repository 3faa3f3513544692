"""A reader's process beside a daemon: what it answers, what it refuses, and that nothing of the image is changed by it."""

import pathlib

import pytest
from test_following import files_of

import batos

NOTE = "Turn the brass valve until the needle stands at zero."


def reader_beside(daemon, one):
    return daemon("--read-only", "--image", str(one.folder / "live_image.fs"))


def test_it_answers_what_the_writer_stored_and_says_as_of_when(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(one.endpoint) as writer, batos.Client(other.endpoint) as reader:
        change = writer.call("index_document", doc_id="valve.md", text=NOTE)["change"]
        found = reader.call("search_memory", query="brass valve", after=change)
        assert "brass valve" in found["results"][0]["chunk"]["text"] and found["as_of"] >= change[:16]
        rows = reader.call("list_documents", prefix="valve", after_change=change)["results"]
        assert [row["doc_id"] for row in rows] == ["valve.md"]
        assert reader.call("inspect", target="genesis_obj")["result"] == writer.call("inspect", target="genesis_obj")["result"]
        assert reader.call("history")["results"][0]["change"] == writer.call("history")["results"][0]["change"]
        assert reader.call("list_cycles")["results"] == []
        health = reader.call("health")["result"]
        assert health["state"] == "reading" and health["writer"] == one.endpoint


def test_what_changes_or_thinks_is_told_where_to_go(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is it turned?"]}
        for name, fields in (("index_document", {"doc_id": "a", "text": NOTE}), ("shutdown", {}),
                             ("initiate_cognitive_cycle", {"mission_brief": brief}), ("subscribe", {})):
            with pytest.raises(batos.ReadOnly, match=one.endpoint) as told:
                reader.call(name, **fields)
            assert told.value.fields["writer"] == one.endpoint
        with pytest.raises(batos.Behind):
            reader.call("health", after="f" * 16)
        with pytest.raises(batos.NotFound):
            reader.call("inspect", target="nowhere_obj")
        assert one.stop() == 0
        with pytest.raises(batos.ReadOnly, match="no daemon writes"):
            reader.call("shutdown")
    assert other.stop() == 0


@pytest.mark.parametrize("words", [["ask", "How is it turned?"], ["undo", "0400000000000000.0"]])
def test_on_the_command_line_it_is_said_of_what_was_typed(daemon, capsys, words):
    one = daemon()
    other = reader_beside(daemon, one)
    assert batos.main([*words, "--endpoint", other.endpoint]) == 1
    assert f"{words[0]} is not answered by a reader" in capsys.readouterr().err


@pytest.mark.slow
def test_it_goes_on_through_a_pack_a_kill_and_a_restart_of_the_writer(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        with batos.Client(one.endpoint) as writer:
            for number in range(5):
                change = writer.call("index_document", doc_id=f"{number}.md", text=f"{NOTE} Number {number}.")["change"]
            writer.call("pack", days=0)
            assert len(reader.call("list_documents", after_change=change)["results"]) >= 5
        one.stop(kill=True)
        assert reader.call("search_memory", query="brass valve")["results"]
        again = daemon()
        with batos.Client(again.endpoint) as writer:
            change = writer.call("index_document", doc_id="later.md", text="The later one is of copper.")["change"]
        assert reader.call("search_memory", query="copper", after=change)["results"]


def test_nothing_of_the_image_is_changed_by_it(daemon, tmp_path):
    one = daemon()
    with batos.Client(one.endpoint) as writer:
        writer.call("index_document", doc_id="valve.md", text=NOTE)
    assert one.stop() == 0
    image = files_of(tmp_path)
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        assert reader.call("search_memory", query="brass valve")["results"] and reader.call("history")["results"]
    assert other.stop() == 0
    assert files_of(tmp_path) == image and pathlib.Path(tmp_path / "live_image.fs").exists()


@pytest.mark.parametrize("data, told", [
    (None, "there is no image at"), (b"", "there is no image at"),
    (b"nothing that we wrote" * 9, "does not begin as a data file"),
])
def test_what_is_no_image_is_refused_by_what_it_is(tmp_path, capsys, data, told):
    path = tmp_path / "other.fs"
    if data is not None:
        path.write_bytes(data)
    endpoint = f"ipc://{tmp_path}/s"
    assert batos.main(["--read-only", "--image", str(path), "--endpoint", endpoint]) == 1
    said = capsys.readouterr().err
    assert told in said and str(path) in said
