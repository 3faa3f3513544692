"""Experts beside the four: a facet is asked by what its pillar, tag or task is bound to; pillars made later are guests."""

import random
import sys
import time
import types

import doubles
import pytest
from test_memory import SEED, stage, wait_for_core
from test_mind import BRIEF, Speaker, machine  # noqa: F401  (a fixture)

import batos

ICEMAN = "iceman_facet_"
PUMPS = """The brass valve of the pump is in the cellar.

The brass valve of the pump is turned twice.

The brass valve of the pump is never oiled."""


class Experts(doubles.QuickCore):
    """A core with experts: `serves` are their names; `asked` is [(task, adapter, fields)] of its rows."""

    def __init__(self, *serves, **values):
        super().__init__(**values)
        self.serves, self.asked = {*serves}, []

    def expert(self, name):
        return name if name in self.serves else batos.BASE

    def infer(self, requests):
        self.asked += [(one.task, one.adapter, one.fields) for one in requests]
        return super().infer(requests)


class Writes(Experts, Speaker):
    """Such a core that writes: `asked` is [(task, adapter, prompt)]."""

    def __init__(self, *serves, said):
        Speaker.__init__(self, *said)
        self.serves, self.asked = {*serves}, []

    def infer_(self, prompt, persona=None, system_prompt=None, on_text=None, **how):
        self.asked.append(("write", self.expert(persona), prompt))
        return super().infer_(prompt, persona, system_prompt, on_text, **how)


def known(names):
    """Return what stands for the memory of experts: it knows some."""
    def find(name):
        if name not in names:
            raise batos.NotFound(f"no expert is named {name}", kind="expert", name=name)
        if name == "COLD":
            raise batos.AdapterMismatch("COLD stays cold: it was made for another core")
        return types.SimpleNamespace(name=name)
    return types.SimpleNamespace(known=find)


def bind(one, what, name=None, persona="babs", names=("ONE_QUOTE", "COLD")):
    one.image.db.synapses = known(names)
    return one.lanes["write"].call(batos.Job("bind", lambda root: batos.send(
        root[f"{persona}_prototype_obj"], "set_expert_", what, name), who="me")).result


def learnt(one):
    for number, text in enumerate(PUMPS.split("\n\n")):
        one.learn(text, f"pump{number}.md")
    return one


ASKED = {**BRIEF, "args": ["What is known of the brass valve of the pump?"]}


def texts(report):
    return [item["text"] for item in report["evidence"]]


def facets_asked(core):
    return [(adapter, fields["pillar"]) for task, adapter, fields in core.asked if task == "facet"]


def test_a_facet_is_asked_by_the_expert_that_it_is_bound_to_and_what_that_chose_is_told(machine):  # noqa: F811
    core = Experts("ONE_QUOTE")
    one = learnt(machine(core))
    before = one.think(ASKED)
    assert before["experts"] == ["BABS"] and len(before["evidence"]) > 1 and facets_asked(core) == []
    bind(one, ICEMAN, "one_quote")
    report = one.think({**ASKED, "kwargs": {"n": 1}})
    assert report["experts"] == ["BABS", "ONE_QUOTE"] and texts(report) == texts(before)[:1]
    assert facets_asked(core) == [("ONE_QUOTE", ICEMAN)] and report["pillars"] == before["pillars"]
    assert bind(one, ICEMAN) == {}
    after = one.think({**ASKED, "kwargs": {"n": 2}})
    assert after["experts"] == ["BABS"] and texts(after) == texts(before) and len(facets_asked(core)) == 1


def test_what_answers_is_told_whatever_an_expert_chose(machine):  # noqa: F811
    core = Experts("ONE_QUOTE", facet=lambda fields: {"frame": "", "quotes": [2]})
    one = learnt(machine(core))
    before = texts(one.think(ASKED))
    bind(one, ICEMAN, "ONE_QUOTE")
    assert texts(one.think({**ASKED, "kwargs": {"n": 1}})) == before[:2] != before


def test_an_expert_that_cannot_be_asked_leaves_everything_as_it_was(machine):  # noqa: F811
    core = Experts()
    one = learnt(machine(core))
    before = one.think(ASKED)
    bind(one, ICEMAN, "ONE_QUOTE")
    report = one.think({**ASKED, "kwargs": {"n": 1}})
    assert report["experts"] == before["experts"] and texts(report) == texts(before) and not facets_asked(core)


def test_a_core_that_fails_with_an_expert_costs_no_passage(machine):  # noqa: F811
    def fails(fields):
        raise batos.CoreFailed("it fell over")
    one = learnt(machine(Experts("ONE_QUOTE", facet=fails)))
    before = texts(one.think(ASKED))
    bind(one, ICEMAN, "ONE_QUOTE")
    report = one.think({**ASKED, "kwargs": {"n": 1}})
    assert report["state"] == "COMPLETE" and texts(report) == before and report["why_no_words"]["code"] == "CoreFailed"


def test_documents_of_a_tag_have_their_expert(machine):  # noqa: F811
    core = Experts("ONE_QUOTE")
    one = machine(core)
    one.lanes["bulk"].call(batos.Job("learn", lambda root: batos.index_document_(
        root["knowledge_catalog_obj"], "pump.md", PUMPS, {"tags": ["pumps"]})["chunks"]))
    bind(one, "tag:pumps", "ONE_QUOTE")
    assert one.think(ASKED)["experts"] == ["BABS", "ONE_QUOTE"]
    assert {adapter for adapter, _ in facets_asked(core)} == {"ONE_QUOTE"}


def test_a_task_has_its_expert(machine):  # noqa: F811
    core = Experts("ONE_QUOTE")
    one = learnt(machine(core))
    bind(one, "task:plan", "ONE_QUOTE", persona="alfred")
    one.think(ASKED)
    assert [(task, adapter) for task, adapter, _ in core.asked] == [("plan", "ONE_QUOTE")]


def test_a_core_that_writes_speaks_by_the_expert_of_its_leads_facet(machine):  # noqa: F811
    said = ["The brass valve is in the cellar [1]."]
    core = Writes("ONE_QUOTE", "BABS", said=said)
    one = learnt(machine(core))
    assert one.think(ASKED)["experts"] == ["BABS"]
    pillar = batos.PILLARS["BABS"][0]
    bind(one, pillar, "ONE_QUOTE")
    assert one.think({**ASKED, "kwargs": {"n": 1}})["experts"] == ["BABS", "ONE_QUOTE"]
    bind(one, pillar)
    bind(one, ICEMAN, "ONE_QUOTE")                       # which is not asked, as one facet is
    assert one.think({**ASKED, "kwargs": {"n": 2}})["experts"] == ["BABS"]
    assert [adapter for _, adapter, _ in core.asked] == ["BABS", "ONE_QUOTE", "BABS"]


@pytest.mark.parametrize("what, name, error, told", [
    ("sage_facet_", "ONE_QUOTE", batos.BadRequest, "BABS has no pillar 'sage_facet_'"),
    ("", "ONE_QUOTE", batos.BadRequest, "no pillar"),
    ("task:sing", "ONE_QUOTE", batos.BadRequest, "plan, facet"), ("tag:", "ONE_QUOTE", batos.BadRequest, "no pillar"),
    (ICEMAN, "NOBODY", batos.NotFound, "NOBODY"), (ICEMAN, "COLD", batos.AdapterMismatch, "another core"),
    (7, "ONE_QUOTE", batos.BadRequest, "pillar is a text"), (ICEMAN, 7, batos.BadRequest, "name is a text")])
def test_what_is_bound_is_checked_first(machine, what, name, error, told):  # noqa: F811
    one = machine()
    with pytest.raises(error, match=told):
        bind(one, what, name)
    assert one.read(lambda root: root["codex_obj"].facet_experts) == {}


def test_a_message_binds_and_undo_looses_and_nothing_else_writes_it(daemon, tmp_path):
    with batos.Client(daemon(core=0).endpoint) as client:
        with pytest.raises(batos.NotFound, match="no expert is named 'NOBODY'"):
            client.call("send_message", target="babs_prototype_obj", selector="set_expert:", args=[ICEMAN, "NOBODY"])
        with pytest.raises(batos.Protected, match="set_expert_"):
            client.call("send_message", target="codex_obj", selector="setSlot_value_", args=["facet_experts", {ICEMAN: "X"}])
        with pytest.raises(batos.MessageNotUnderstood, match="babs_prototype_obj"):
            client.call("send_message", target="orchestrator_obj", selector="set_expert_", args=[ICEMAN, None])


def made(one, name="babs_valves_facet_", **about):
    """Put a pillar beside the twelve into the image."""
    def apply(root):
        with batos.system_writes(root):
            root["babs_prototype_obj"].pillars[name] = batos.UvmObject(
                name=name, intent="Say of valves where they are.", about=about)
    one.lanes["write"].call(batos.Job("make", apply))


@pytest.mark.parametrize("gate", [True, False])
def test_a_pillar_that_was_made_later_comes_in_as_a_guest_where_it_is_of_what_is_asked(machine, gate):  # noqa: F811
    core = Experts("ONE_QUOTE")
    one = learnt(machine(core, gate=gate, gate_noise=0.0))
    made(one, words=["brass", "valv"])
    bind(one, "babs_valves_facet_", "ONE_QUOTE")
    report = one.think(ASKED)
    assert ("babs_valves_facet_" in report["pillars"]) == ("ONE_QUOTE" in report["experts"]) == gate
    if gate:
        assert report["routing"]["facet"] == "babs_valves_facet_" and report["lead"] == "BABS"
        assert one.read(lambda root: batos.facet_stands(root["babs_prototype_obj"], "babs_valves_facet_"))
        one.learn("The lamp of the cellar is green.", "lamp.md")
        other = one.think({**BRIEF, "args": ["Which colour has the lamp of the cellar?"]})
        assert "babs_valves_facet_" not in other["pillars"] and "ONE_QUOTE" not in other["experts"]


def test_experts_beside_the_four_enlarge_the_base_of_the_entropy():
    every = [batos.Ended("0x1", None, 1.0, "answered", False, False, (), "What?", "x", voices=(name,)) for name in batos.PILLARS]
    assert batos._h_cog(every)[0] == pytest.approx(1.0)
    more = [*every, every[0]._replace(voices=("BABS", "ONE_QUOTE"))]
    share, spoke = batos._h_cog(more)
    assert spoke["ONE_QUOTE"] == 1 and share < 1.0


def test_an_expert_that_was_asked_is_among_the_voices_of_a_mission():
    result = {"lead": "BABS", "pillars": ["iceman_facet_"], "experts": ["BABS", "ONE_QUOTE"]}
    assert "ONE_QUOTE" in batos._heard_in(result)


# With the core itself


@pytest.fixture(scope="module")
def one_quote(tmp_path_factory):
    """A folder with an expert that was trained on facets of one quote alone."""
    folder = tmp_path_factory.mktemp("staged")
    sys.path.insert(0, str(SEED))
    try:
        import personas
    finally:
        sys.path.remove(str(SEED))
    tokenizer = batos.need("transformers", "tests").AutoTokenizer.from_pretrained(SEED).backend_tokenizer
    maker = personas.train.Maker("one quote", *personas.train.docstring_passages())
    model = personas.adapted(SEED)
    options = types.SimpleNamespace(minutes=1.0)
    personas.trained("ALFRED", model, tokenizer, maker, options)     # who is taught thrift
    personas.save("ALFRED", model, folder, personas.base_of(SEED))
    (folder / "ALFRED").rename(folder / "ONE_QUOTE")
    return folder


def asking(client, question):
    brief = {"type": "direct_synthesis", "selector": "q", "args": [question]}
    return client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]


def binds(client, pillar, name):
    """Bind an expert to a pillar, by a message to its persona. Returns the change."""
    target = f"{batos.PERSONA_OF[pillar].lower()}_prototype_obj"
    return client.call("send_message", target=target, selector="set_expert_", args=[pillar, name])["change"]


@pytest.mark.slow
def test_an_expert_of_one_quote_is_named_and_tells_one_quote(daemon, one_quote):
    questions = ["Where is the brass valve of the pump?", "What is known of the brass valve of the pump?"]
    with batos.Client(daemon("--adapters", str(one_quote), core=str(SEED)).endpoint) as client:
        wait_for_core(client)
        for number, text in enumerate(PUMPS.split("\n\n")):
            client.call("index_document", doc_id=f"pump{number}.md", text=text)
        before = [asking(client, question) for question in questions]
        pillars = {pillar for report in before for pillar in report["pillars"]}
        changes = [binds(client, pillar, "ONE_QUOTE") for pillar in sorted(pillars)]
        bound = [asking(client, f"{question} ") for question in questions]
        assert {len(report["evidence"]) for report in bound if "ONE_QUOTE" in report["experts"]} == {1}
        assert max(len(report["evidence"]) for report in before) > 1
        for change in reversed(changes):
            client.call("undo", change=change)
        after = [asking(client, question) for question in questions]
        for one, other in zip(before, after, strict=True):
            assert one["experts"] == other["experts"] and len(one["evidence"]) == len(other["evidence"])


@pytest.mark.slow
def test_two_hundred_bound_experts_stay_within_the_budgets(daemon, tmp_path):
    staged, picker = tmp_path / "staged", random.Random(4)
    for number in range(200):
        stage(staged, f"X{number}", seed=number, std=0.001)
    one = daemon("--adapters", str(staged), "--ram-cache-mb", "20", core=str(SEED))
    with batos.Client(one.endpoint) as client:
        wait_for_core(client)
        for number, text in enumerate(PUMPS.split("\n\n")):
            client.call("index_document", doc_id=f"pump{number}.md", text=text)
        question = "Where is the brass valve of the pump?"
        named, began_s, pillars = set(), time.monotonic(), asking(client, question)["pillars"]
        for number in range(1, 41):
            chosen = {pillar: f"X{picker.randrange(200)}" for pillar in pillars}
            for pillar, name in chosen.items():
                binds(client, pillar, name)
            report = asking(client, question + number * " ")
            named |= {*report["experts"]} & {*chosen.values()}
            tiers = client.call("get_full_state")["result"]["health"]["synapses"]
            assert report["state"] == "COMPLETE" and report["evidence"]
            assert len(tiers["hot"]["experts"]) <= tiers["hot"]["slots"] == 8 and tiers["warm"]["mb"] <= 20
        print(f"{len(named)} experts were named by 40 missions in {time.monotonic() - began_s:.0f} s")
        assert len(named) >= 20
    assert one.stop() == 0
