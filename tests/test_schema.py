"""What goes over the wire, as models: all that the tests' daemons tell is held against them, and the command line prints them."""

import json
import types

import pytest
import told

import batos

AT = {"$time": "2026-01-31T12:00:00Z"}


def test_every_topic_has_a_model_and_every_model_a_topic():
    assert set(batos._EVENT_MODELS) == {*batos.TOPICS, "lagged"}
    for topic, model in batos._EVENT_MODELS.items():
        assert model.model_json_schema()["properties"]["event"] == {"const": topic, "title": "Event", "type": "string"}
        assert model.__doc__


def printed(capsys, *words):
    assert batos.main(["schema", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_prints_them(capsys):
    everything = printed(capsys)
    assert everything["commands"].keys() == batos.COMMANDS.keys() and everything["replies"].keys() == {"OK", "ERROR"}
    assert everything["events"].keys() == batos._EVENT_MODELS.keys()
    one = printed(capsys, "index_document")
    assert one == everything["commands"]["index_document"] and one["properties"]["command"] == {"const": "index_document"}
    assert "doc_id" in one["required"] and one["additionalProperties"] is False
    assert printed(capsys, "tokens")["properties"]["provisional"]["const"] is True
    assert batos.main(["schema", "tokns"]) == 1 and "did you mean tokens?" in capsys.readouterr().err


@pytest.mark.parametrize("message", [
    {"event": "cycle", "at": AT, "cycle": "0x1", "state": "ASLEEP"}, {"event": "cycle", "cycle": "0x1", "state": "IDLE"},
    {"event": "lagged", "missed": 1, "more": 2}, {"event": "unheard", "at": AT}, {"id": 1, "status": "OK", "surprise": 1},
    {"id": 1, "status": "FINE"}, {"id": 1}])
def test_what_is_of_no_model_is_found(tmp_path, message):
    sent = types.SimpleNamespace(pack_reply=json.dumps, _model_of_message=batos._model_of_message)
    told.watch(sent, tmp_path)
    assert json.loads(sent.pack_reply({"event": "cycle", "at": AT, "cycle": "0x1", "state": "IDLE"}))["cycle"] == "0x1"
    told.check(tmp_path)
    assert json.loads(sent.pack_reply(message)) == message
    with pytest.raises(AssertionError, match="validation error|KeyError"):
        told.check(tmp_path)


def test_what_daemons_of_the_tests_tell_is_checked(daemon):
    """A daemon of whose models one is wrong is found out when it stops; nobody has to look."""
    one = daemon()
    with batos.Client(one.endpoint) as client, batos.Client(one.endpoint) as listener:
        events, topics = listener.events(*batos.TOPICS), set()
        next(events)                                     # from now on it hears what changes
        client.call("index_document", doc_id="a", text="The brass valve.")
        for event in events:
            topics |= {event["event"]} if event else set()
            if {"health", "uvm_state_update"} <= topics:
                break
        with pytest.raises(batos.NotFound):
            client.call("inspect", target="nowhere_obj")
    assert one.stop() == 0
    (one.folder / told.FAULTS).write_text("a fault")
    with pytest.raises(AssertionError, match="a fault"):
        one.stop()
    (one.folder / told.FAULTS).unlink()
