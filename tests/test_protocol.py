"""The protocol as data: values on the wire, bodies of keys, what is malformed and what is refused."""

import datetime
import pickle

import ormsgpack
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batos
from batos import BadRequest, Malformed, UnknownCommand, from_wire, to_wire

KEYS = st.text(max_size=4) | st.sampled_from(["$", "$$", "$ref", "$time", "$$ref", "$tree", "$blob", "$x"])
TIMES = st.datetimes(datetime.datetime(2, 1, 1), datetime.datetime(9998, 1, 1), timezones=st.just(datetime.UTC)).map(
    lambda at: at.replace(fold=0))
SCALARS = (st.none() | st.booleans() | st.integers(-2 ** 63, 2 ** 64 - 1) | st.floats(allow_nan=False)
           | st.text(max_size=8) | st.binary(max_size=8))
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(KEYS | st.integers(-9, 9), inner, max_size=3), max_leaves=12)
VALUES = st.recursive(SCALARS | TIMES, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(KEYS | st.integers(-9, 9), inner, max_size=3), max_leaves=12)
SEND = {"command": "send_message", "target": "genesis_obj", "selector": "x_"}


def over_the_wire(value):
    """Pack and unpack as a reply or a request is."""
    return ormsgpack.unpackb(batos.pack_reply(value), option=ormsgpack.OPT_NON_STR_KEYS)


def nested(depth, innermost=0):
    value = innermost
    for _ in range(depth):
        value = [value]
    return value


# Values


@given(VALUES)
def test_a_slots_value_comes_back_from_the_wire_as_it_was(value):
    value = batos.checked(value)
    again = from_wire(over_the_wire(to_wire(value)), None)
    assert again == value and repr(again) == repr(value)     # also 1 and True, 0.0 and -0.0
    batos.checked(again)


@given(PLAIN)
def test_a_value_without_times_comes_back_to_the_wire_as_it_was(value):
    wire = over_the_wire(to_wire(value))
    assert to_wire(from_wire(wire, None)) == wire


@settings(max_examples=30)
@given(st.datetimes(datetime.datetime(2, 1, 1), datetime.datetime(9998, 1, 1), timezones=st.timezones()))
def test_a_time_of_any_zone_stands_on_the_wire_in_utc(at):
    wire = to_wire(at)
    assert wire["$time"].endswith("Z") and from_wire(wire, None) == at.astimezone(datetime.UTC)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_at_the_end_of_the_calendar_is_refused_or_can_be_shown(text):
    try:
        at = from_wire({"$time": text}, None)
    except BadRequest:
        return
    to_wire(at)


@pytest.fixture
def root(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    unit = batos.Unit(image.db)
    unit.manager.begin()
    yield unit.root
    unit.manager.abort()
    unit.close()
    image.close()


def test_references_come_back_as_the_very_objects(root):
    genesis = root["genesis_obj"]
    value = [genesis, {"of": root["traits_obj"], "$ref": 1}]
    again = from_wire(over_the_wire(to_wire(value)), root)
    assert again[0] is genesis and again[1]["of"] is root["traits_obj"] and again == value
    assert from_wire({"$ref": "genesis_obj"}, root) is genesis
    with pytest.raises(batos.NotFound, match="genesis_obj"):
        from_wire({"$ref": "genesis_ob"}, root)


def test_trees_and_blobs_are_shown_and_not_taken():
    tree = batos.LOBTree({n: [n] for n in range(2000)})
    wire = over_the_wire(to_wire(tree, 3))
    assert wire == {"$tree": {"size": 2000, "entries": [[0, [0]], [1, [1]], [2, [2]]]}}
    assert len(to_wire([tree], 100)[0]["$tree"]["entries"]) == 10        # within another value less is shown
    tree.update({number: [number] for number in range(20_000)})
    told = to_wire(tree, 3)["$tree"]                     # to count them all would read each leaf
    assert told["size"] == batos._COUNTED_MOST and told["more"] is True
    assert to_wire(batos.ZODB.blob.Blob()) == {"$blob": {}} and to_wire(batos.UvmObject()) == {"$ref": "new"}
    for shown in (wire, {"$blob": {}}):
        with pytest.raises(BadRequest, match="tag"):
            from_wire(shown, None)


@pytest.mark.parametrize("value", [{"$time": 7}, {"$time": "tomorrow"}, {"$time": None}, {"$ref": 7}, {"$ref": ["0x1"]},
                                   {"$x": 1}, {"$": 1}, {"$ref": "0x1", "$time": "x"}, {"$ref": "0x1", "a": 1}])
def test_what_is_no_tag_is_refused(value):
    with pytest.raises(BadRequest, match="tag|takes"):
        from_wire(value, None)


def test_depth_is_limited_where_a_slot_is_limited():
    deepest = nested(batos.MAX_DEPTH, "x")
    assert batos.checked(from_wire(deepest, None)) == deepest and to_wire(deepest) == deepest
    for deep in (nested(batos.MAX_DEPTH + 1), {"a": nested(batos.MAX_DEPTH)}):
        with pytest.raises(BadRequest, match="nested deeper"):
            from_wire(deep, None)
        with pytest.raises(batos.BadSlot, match="nested deeper"):
            batos.checked(deep)


def test_an_int_may_stand_as_deep_as_a_str():
    batos.checked(nested(batos.MAX_DEPTH, 1))


# Bodies of keys


def body(**fields):
    return batos.body_digest(batos.parse_command({**SEND, **fields}))


@given(PLAIN, st.none() | st.integers() | st.text(max_size=9), st.text(max_size=9))
def test_what_is_no_part_of_the_body_does_not_change_it(value, number, why):
    fields = {"args": [value], "kwargs": {"b": 1, "a": {"y": 1, "x": value}}}
    again = {"kwargs": {"a": {"x": value, "y": 1}, "b": 1}, "args": [value]}
    assert body(**fields) == body(**again, id=number, v=1, idempotency_key="k", why=why)


def test_wait_and_defaults_are_no_part_of_the_body():
    mission = {"command": "initiate_cognitive_cycle", "mission_brief": {"type": "self_audit", "selector": "x"}}
    explicit = {**mission, "mission_brief": {**mission["mission_brief"], "args": [], "kwargs": {}}, "wait": True}
    assert batos.body_digest(batos.parse_command(mission)) == batos.body_digest(batos.parse_command(explicit))


@given(st.dictionaries(st.integers(-9, 9) | KEYS, SCALARS, min_size=2, max_size=5))
def test_the_order_of_a_maps_keys_does_not_change_the_body(value):
    assert body(args=[value]) == body(args=[dict(reversed(value.items()))])


@given(PLAIN, PLAIN)
def test_another_value_is_another_body(one, other):
    if ormsgpack.packb(batos._sorted(one), option=ormsgpack.OPT_NON_STR_KEYS) != \
            ormsgpack.packb(batos._sorted(other), option=ormsgpack.OPT_NON_STR_KEYS):
        assert body(args=[one]) != body(args=[other])
    else:
        assert body(args=[one]) == body(args=[other])


@pytest.mark.parametrize("fields", [{"args": [True]}, {"args": [1.0]}, {"args": ["1"]}, {"args": [b"1"]}, {"args": [[1]]},
                                    {"args": [1, None]}, {"args": []}, {"target": "traits_obj"}, {"selector": "y_"},
                                    {"kwargs": {"a": 1}}, {"intent": "x"}, {"client": "x"}])
def test_values_that_look_alike_are_other_bodies(fields):
    assert body(args=[1]) != body(**{"args": [1], **fields})


def test_a_body_nested_too_deeply_is_a_bad_request():
    with pytest.raises(BadRequest, match="deep"):
        body(args=nested(400))


# What is malformed, what is refused


@given(st.binary(max_size=200) | PLAIN.map(batos.pack_reply))
def test_any_bytes_are_a_map_or_malformed(payload):
    try:
        assert isinstance(batos.unpack_request(payload), dict)
    except Malformed as error:
        assert error.message


def test_msgpack_nested_without_end_is_malformed():
    for payload in (b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\x81" * 100_000):
        with pytest.raises(Malformed):
            batos.unpack_request(payload)


COMMAND_NAMES = st.sampled_from(sorted(batos.COMMANDS)) | st.text(max_size=12) | SCALARS
FIELD_NAMES = st.sampled_from(sorted({field for row in batos.COMMANDS.values() for field in row.model.model_fields}
                                     | {"top_k", "type"})) | st.text(max_size=8) | st.integers() | st.binary(max_size=4)
MAPS = st.dictionaries(FIELD_NAMES, PLAIN, max_size=6)


@pytest.mark.slow
@settings(max_examples=400)
@given(st.tuples(COMMAND_NAMES, MAPS, st.booleans()))
def test_any_map_is_a_command_unknown_or_a_bad_request(given_map):
    name, fields, named = given_map
    request = {**fields, "command": name} if named else fields
    try:
        assert isinstance(batos.parse_command(request), batos.COMMANDS[name].model)
    except (UnknownCommand, BadRequest) as error:
        assert error.message and batos.pack_reply(batos.error_reply(None, error))


@given(st.tuples(st.sampled_from(sorted(batos.COMMANDS)), PLAIN))
def test_any_brief_is_taken_or_a_bad_request(given_brief):
    name, brief = given_brief
    with pytest.raises((UnknownCommand, BadRequest)):
        batos.parse_command({"command": name, "mission_brief": {"type": "self_audit", "selector": "x", "surplus": brief}})


def test_a_map_nested_as_deeply_as_msgpack_allows_is_refused_by_name():
    for request in ({"command": "health", "x": nested(900)}, {"command": "inspect", "target": nested(900)},
                    {**SEND, "kwargs": nested(900)}):
        with pytest.raises((BadRequest, RecursionError)) as caught:
            batos.parse_command(request)
        assert batos.error_reply(1, caught.value)["code"] == "BadRequest"


@pytest.mark.parametrize("request_map", [{"command": "x" * 10_000}, {"command": "health", "x" * 10_000: 1},
                                         {"command": ["x" * 10_000]}])
def test_an_error_does_not_repeat_a_long_name(request_map):
    with pytest.raises((UnknownCommand, BadRequest)) as caught:
        batos.parse_command(request_map)
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize("fields, near", [
    ({"command": "helth"}, "did you mean health"), ({"command": None}, "known are|did you mean"), ({}, "None"),
    ({"command": "inspect", "targt": "x", "target": "y"}, "did you mean target"),
    ({"command": "search_memory", "query": "x", "max_result": 3}, "did you mean max_results"),
    ({"command": "initiate_cognitive_cycle", "mission_brief": {"type": "self_audit", "selector": "x", "arg": []}},
     "'mission_brief.arg'; did you mean args"),
    ({"command": "health", "zzz": 1}, "its fields are client, command"),
])
def test_unknown_names_are_answered_with_the_nearest(fields, near):
    with pytest.raises((UnknownCommand, BadRequest), match=near):
        batos.parse_command(fields)


@pytest.mark.parametrize("fields, words", [
    ({"command": "inspect"}, "'target' is missing"), ({"command": "inspect", "target": 7}, "'target' is not right.*got 7"),
    ({"command": "inspect", "target": "x", "limit": "50"}, "limit"), ({"command": "inspect", "target": "x", "limit": 0}, "limit"),
    ({"command": "inspect", "target": "x", "limit": True}, "limit"), ({"command": "health", "v": 2}, "'v' is not right"),
    ({"command": "health", "idempotency_key": ""}, "idempotency_key"), ({"command": "health", "why": "x" * 201}, "why"),
    ({"command": "health", "idempotency_key": "x" * 65}, "idempotency_key"), ({"command": "health", "id": [1]}, "id"),
    ({**SEND, "args": {"a": 1}}, "args"), ({**SEND, "kwargs": {1: 1}}, "kwargs"), ({**SEND, "selector": ""}, "selector"),
    ({"command": "index_document", "doc_id": "", "text": "x"}, "doc_id"),
    ({"command": "index_document", "doc_id": "x", "text": b"x"}, "text"),
    ({"command": "search_memory", "query": "x", "max_results": 101}, "max_results"),
    ({"command": "list_cycles", "state": "DONE"}, "state.*FAILED"),
    ({"command": "initiate_cognitive_cycle", "mission_brief": {"type": "poem", "selector": "x"}}, "mission_brief.type"),
])
def test_types_are_strict_and_bounds_are_kept(fields, words):
    with pytest.raises(BadRequest, match=words) as caught:
        batos.parse_command(fields)
    assert caught.value.fields["field"]


def test_top_k_is_another_name_for_max_results():
    assert batos.parse_command({"command": "search_memory", "query": "x", "top_k": 7}).max_results == 7


# The table


def test_every_command_is_told_and_answered_in_one_place():
    for name, row in batos.COMMANDS.items():
        assert row.model.__doc__ and issubclass(row.model, batos.Command) and row.model.__doc__ != batos.Command.__doc__
        assert name == batos._command_name(row.model) and row.role in batos.ROLES, name
        assert not (row.effect and row.lane == "loop"), name


def test_every_model_is_strict_and_takes_no_unknown_field():
    for kind in (batos.MissionBrief, *(row.model for row in batos.COMMANDS.values())):
        assert kind.model_config["strict"] and kind.model_config["extra"] == "forbid" and issubclass(kind, pydantic.BaseModel)


def test_what_is_no_error_of_bat_os_shows_its_kind_alone():
    reply = batos.error_reply(7, KeyError("secret"))
    assert (reply["id"], reply["status"], reply["code"]) == (7, "ERROR", "InternalError")
    assert "secret" not in reply["details"] and "KeyError" in reply["details"]
    assert batos.error_reply(7, batos.Busy("later"))["retry"] is True and "retry" not in batos.error_reply(7, Malformed("x"))


def test_an_error_reaches_the_client_with_its_fields():
    reply = batos.error_reply(1, batos.TooLate("ended", result={"state": "COMPLETE", "at": batos.now_utc()}, text="x" * 100_000))
    assert reply["fields"]["result"]["state"] == "COMPLETE" and "$time" in reply["fields"]["result"]["at"]
    assert reply["fields"]["text"] == {"$large": "str"} and "fields" not in batos.error_reply(1, batos.Busy("later"))
    with pytest.raises(batos.TooLate, match="ended") as caught:
        batos._checked_reply(batos.ormsgpack.unpackb(batos.pack_reply(reply)))
    assert caught.value.fields["result"]["state"] == "COMPLETE"
    with pytest.raises(batos.BatosError, match="odd"):
        batos._checked_reply({"status": "ERROR", "code": "Unheard", "details": "odd", "fields": {"message": 1}})


# What an inspector looks at


def test_a_document_is_shown_from_a_chunk_on(daemon):
    text = "\n\n".join(f"# Part {n}\n\n" + f"Sentence {n} tells of the valve. " * 12 for n in range(9))
    with batos.Client(daemon().endpoint) as client:
        client.call("index_document", doc_id="manual", text=text)
        client.call("index_document", doc_id="manual", text=text + "\n\nOne more line.")
        whole = client.call("show_document", doc_id="manual", limit=1000)
        first = client.call("show_document", doc_id="manual", limit=2)
        rest = client.call("show_document", doc_id="manual", first=first["result"]["after"], limit=1000)
        assert first["results"] + rest["results"] == whole["results"] and rest["result"]["after"] is None
        assert [row["chunk_index"] for row in whole["results"]] == list(range(whole["result"]["chunks"]))
        lines = text.splitlines()
        assert all(row["text"].splitlines()[0] == lines[row["lines"][0] - 1] for row in whole["results"])
        assert client.call("show_document", doc_id="manual", version=1)["result"]["version"] == 1
        with pytest.raises(batos.NotFound):
            client.call("show_document", doc_id="manul")


def test_objects_are_listed_page_by_page_and_found_by_words_slot_and_parent(daemon):
    with batos.Client(daemon().endpoint) as client:
        for n in range(30):
            clone = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
            client.call("send_message", target=clone, selector="setSlot_value_", args=["name", f"lamp {n}"])
        child = client.call("send_message", target=clone, selector="setSlot_value_", args=["parent*", [{"$ref": "genesis_obj"}]])
        assert child["status"] == "OK"
        found, after = [], "0x0"
        while after is not None:
            reply = client.call("list_objects", after=after, limit=7)
            found, after = found + [row["oid"] for row in reply["results"]], reply["result"]["after"]
        assert len(found) == len(set(found)) > 60 and found == sorted(found, key=lambda oid: int(oid, 16))
        assert len(client.call("list_objects", words="LAMP", limit=1000)["results"]) == 30
        assert [row["oid"] for row in client.call("list_objects", parent="genesis_obj")["results"]] == [clone]
        assert {row["class"] for row in client.call("list_objects", kind="Method")["results"]} == {"Method"}
        assert [row["name"] for row in client.call("list_objects", slot="lora_repository")["results"]] == ["pLLM_obj"]


def test_objects_after_the_last_number_are_none(daemon):
    with batos.Client(daemon().endpoint) as client:
        assert client.call("list_objects", after="0xffffffffffffffff")["results"] == []


# What comes back of what was sent


@pytest.mark.parametrize("request_id", [0, "a" * batos._MAX_ID, b"a" * batos._MAX_ID, 1.5, True, None])
def test_an_id_of_ordinary_size_comes_back(request_id):
    assert batos.request_id({"id": request_id}) == request_id


@pytest.mark.parametrize("request_id", ["a" * 20_000_000, b"a" * (batos._MAX_ID + 1)])
def test_a_long_id_is_refused(request_id):
    with pytest.raises(BadRequest, match=f"the id has {len(request_id):,} .* allowed are 256"):
        batos.request_id({"id": request_id})


def test_an_error_s_sentence_is_shortened_in_its_middle():
    told = batos.error_reply(1, BadRequest(f"the name {'x' * 8_000_000} is none; send another"))["details"]
    assert len(told) < batos._MAX_DETAILS and told.startswith("the name xxx") and told.endswith("is none; send another")
    assert batos.error_reply(1, BadRequest("short"))["details"] == "short"


def test_an_error_that_crosses_a_pipe_keeps_its_kind_its_words_and_its_fields():
    error = pickle.loads(pickle.dumps(batos.NotFound("no such thing", kind="thing", name="x")))
    assert type(error) is batos.NotFound and error.message == "no such thing" and error.fields == {"kind": "thing", "name": "x"}
