"""Skills do not rot: of methods that do the same one body is left where somebody wants it, and what is idle is told of."""

import datetime

import pytest
from test_mind import machine  # noqa: F401  (a fixture)

import batos

SUM = "def total_(self, more):\n    said = sum(self.prices)\n    return said + more\n"
SAME = 'def all_of_it_(self, much):\n    """What all cost."""\n    told = sum(self.prices)\n    return told + much\n'
OTHER = "def spread_(self, more):\n    said = max(self.prices)\n    return said + more\n"


def with_methods(one, *sources):
    """Return the oid of a new object that has prices and methods."""
    def make(root):
        shop = batos.send(root["genesis_obj"], "clone")
        shop.prices = [4, 5]
        root["shop"] = shop
        root._p_jar.add(shop)
        for source in sources:
            batos.bring_in(shop, batos.method_in(batos.ast.parse(source)).name, source, author="me", intent="")
        return batos.oid_text(shop._p_oid)
    return one.lanes["bulk"].call(batos.Job("make", make, who="me")).result


def findings(one, kind):
    return one.read(lambda root: [row for row in batos._outcome_findings(root, []) if row["kind"] == kind])


def merge(one, gone, kept):
    def apply(root):
        made = batos.send(root["shop"], "merge_into_", gone, kept)
        return made.source, made.version, made.author
    return one.lanes["bulk"].call(batos.Job("merge", apply, who="me")).result


def test_methods_that_do_the_same_are_told_of_with_what_would_merge_them(machine):  # noqa: F811
    one = machine()
    oid = with_methods(one, SUM, SAME, OTHER)
    found, = findings(one, "twins")
    assert found["what"] == f"total_ and all_of_it_ of {oid} do the same" and found["remedy"] is None
    assert found["why"].startswith(f"`send {oid} merge_into_ total_ all_of_it_` leaves one body")


def test_the_one_that_is_used_more_stays(machine):  # noqa: F811
    one = machine()
    with_methods(one, SUM, SAME)
    one.lanes["write"].call(batos.Job("use", lambda root: batos._count_method(batos.own(root["shop"])["total_"], [None])))
    assert "merge_into_ all_of_it_ total_" in findings(one, "twins")[0]["why"]


def test_what_is_merged_sends_the_other_message_and_comes_back(machine):  # noqa: F811
    one = machine()
    with_methods(one, SUM, SAME)
    source, version, author = merge(one, "all_of_it:", "total_")
    assert source == 'def all_of_it_(self, much):\n    "What all cost."\n    return self.total_(much)\n'
    assert (version, author) == (2, "me") and findings(one, "twins") == []
    with pytest.raises(batos.BadRequest, match="are not two stored methods"):
        merge(one, "total_", "all_of_it_")
    one.lanes["bulk"].call(batos.Job("back", lambda root: batos.roll_back(root["shop"], "all_of_it_").version))
    assert len(findings(one, "twins")) == 1


@pytest.mark.parametrize("gone, kept, why", [
    ("spread_", "total_", "do not do the same"), ("total_", "total_", "are not two"), ("prices", "total_", "no method"),
    ("total_", 7, "is a text")])
def test_what_does_not_do_the_same_stays(machine, gone, kept, why):  # noqa: F811
    one = machine()
    with_methods(one, SUM, OTHER)
    with pytest.raises((batos.BadRequest, batos.NotFound), match=why):
        merge(one, gone, kept)


def test_arguments_that_may_be_left_out_are_left_as_they_are(machine):  # noqa: F811
    one = machine()
    with_methods(one, SUM.replace("more):", "more=1):"), SAME.replace("much):", "much=1):"))
    with pytest.raises(batos.BadRequest, match="may be left out"):
        merge(one, "all_of_it_", "total_")


def aged(one, selector, slot, days):
    """Have a method be as old as that, or have been used so long ago."""
    def apply(root):
        method = batos.own(root["shop"])[selector]
        batos.own(method)[slot] = batos.now_utc() - datetime.timedelta(days=days)
        method._p_changed = True
    one.lanes["write"].call(batos.Job("age", apply))


def test_a_method_that_nobody_uses_is_told_of_and_stays(machine):  # noqa: F811
    one = machine()
    oid = with_methods(one, SUM, OTHER)
    assert findings(one, "idle method") == []
    aged(one, "total_", "at", 100)
    found, = findings(one, "idle method")
    assert found["what"] == f"total_ of {oid} was used by nobody for 100 days" and found["remedy"] is None
    assert f"`send {oid} removeSlot_ total_`" in found["why"]
    assert one.read(lambda root: "total_" in batos.own(root["shop"]))


def test_a_use_counts_and_what_came_back_is_young(machine):  # noqa: F811
    one = machine()
    with_methods(one, SUM)
    aged(one, "total_", "at", 300)
    one.lanes["write"].call(batos.Job("use", lambda root: batos._count_method(batos.own(root["shop"])["total_"], [None])))
    assert findings(one, "idle method") == []
    aged(one, "total_", "used_at", 200)
    assert "for 200 days" in findings(one, "idle method")[0]["what"]
    aged(one, "total_", "back_at", 3)
    assert findings(one, "idle method") == []


def test_of_many_idle_ones_those_are_told_of_that_are_idle_longest(machine):  # noqa: F811
    one = machine()
    with_methods(one, *[f"def a{n}_(self):\n    return self.prices[0] + {n}\n" for n in range(9)])
    for n in range(9):
        aged(one, f"a{n}_", "at", 100 + n)
    assert [row["what"].split()[0] for row in findings(one, "idle method")] == [f"a{n}_" for n in (8, 7, 6, 5, 4)]


def test_a_daemon_forwards_what_was_merged_and_does_as_before(daemon):
    with batos.Client(daemon(core=0).endpoint, 300) as client:
        oid = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
        client.call("send_message", target=oid, selector="setSlot_value_", args=["prices", [4, 5]])
        for source in (SUM, SAME):
            name = source.split("(")[0].removeprefix("def ")
            client.call("create_method", target_oid=oid, method_name=name, method_code=source)
        client.call("send_message", target=oid, selector="merge_into_", args=["all_of_it_", "total_"])
        assert client.call("send_message", target=oid, selector="all_of_it_", args=[1])["result"] == 10
        used = client.call("inspect", target=f"{oid}.total_")["result"]
        assert used
