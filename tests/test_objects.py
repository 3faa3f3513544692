"""Objects: slots, delegation, send."""

import pytest

import batos
from batos import UvmObject, send


def test_the_receiver_stays_the_one_that_was_asked_and_cycles_end():
    traits = UvmObject(greeting="hello")
    me = UvmObject(**{"parent*": [traits]})
    setattr(traits, "parent*", [me])
    assert me.greeting == "hello"
    assert send(me, "setSlot:value:", "x", [1]) is me
    assert me._slots["x"] == [1] and "x" not in traits._slots
    with pytest.raises(AttributeError):
        _ = me.nothing


def test_synthesis_state_is_asked_first():
    me = UvmObject(**{"parent*": [UvmObject(a=1)], "synthesis_state*": UvmObject(a=2)})
    assert me.a == 2


def test_unknown_messages_name_the_nearest_selector():
    with pytest.raises(batos.MessageNotUnderstood, match="did you mean setSlot_value_"):
        send(UvmObject(), "setSlt_value_", 1, 2)


@pytest.mark.parametrize("name", ["_p_jar", "_v_x", "__x", "clone", "_slots", "1a", "a b", "a**", ""])
def test_reserved_names_are_refused(name):
    with pytest.raises(batos.ReservedName):
        UvmObject().setSlot_value_(name, 1)


@pytest.mark.parametrize("value", [{1, 2}, object(), lambda: 1, {1.5: 2}, 2 ** 65, bytearray(b"x")])
def test_values_outside_the_closed_set_are_refused(value):
    with pytest.raises(batos.BadSlot, match="allowed|use"):
        UvmObject(x=value)


def test_containers_are_copied_when_set_and_clones_do_not_share_them():
    given = [1, {"a": [2]}]
    one = UvmObject(x=given)
    given.append(3)
    two = one.clone()
    assert one.x == [1, {"a": [2]}] and two.x == one.x and two.x is not one.x


def test_persistent_clone_owns_its_trees_and_keeps_references():
    friend = UvmObject()
    one = UvmObject(tree=batos.OOBTree({"a": 1}), friend=friend)
    two = one._clone_persistent_()
    two.tree["b"] = 2
    assert "b" not in one.tree and two.friend is friend and one.clone().tree is one.tree


def test_trees_of_many_entries_are_not_copied_in_the_write_lane(monkeypatch):
    monkeypatch.setattr(batos, "_COPIED_ENTRIES_MOST", 9)
    inner = batos.OOBTree({n: n for n in range(5)})
    holder = batos.UvmObject(outer=batos.OOBTree({"a": inner, "b": 1}), more=batos.LLTreeSet([1, 2]))
    copy = holder._clone_persistent_()                   # nine entries: two, five in the inner one, two
    assert copy.outer["a"] is not inner and list(copy.outer["a"]) == list(range(5))
    inner[5] = 5
    with pytest.raises(batos.BadRequest, match="more than 9 entries.*send clone, which shares them"):
        holder._clone_persistent_()
    assert holder.clone().outer is holder.outer
