"""What the system stands on is changed by no message, method or generated code; who may is told by what is run."""

import contextlib

import pytest

import batos


@pytest.fixture
def image(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    yield image
    image.close()


@contextlib.contextmanager
def message(image, role="write", who="eve"):
    """Yield the root as a message of somebody has it."""
    with batos.writing(image) as root:
        root._p_jar.activation = batos.Activation(who, role)
        yield root


def told(root, target, selector, *args):
    """Return the answer to a message, or the name of its error."""
    try:
        return batos.send(batos.resolve(root, target), selector, *args)
    except batos.BatosError as error:
        return type(error).__name__


def slots(root, name):
    return dict(root[name]._slots)


KEPT = [                                                 # target, and slots that no message sets or removes
    ("pLLM_obj", ("model_id", "model_blob", "lora_repository", "parent*", "infer_", "reflectOn_")),
    ("traits_obj", ("_doesNotUnderstand_", "name")),
    ("genesis_obj", ("parent*", "infer_", "selectors")),
    ("psm_prototypes_obj", ("IDLE", "COMPLETE")),
    ("psm_prototypes_obj.DECOMPOSING", ("_process_synthesis_", "follows", "lead")),
    ("knowledge_catalog_obj", ("documents", "text_index", "chunk_storage", "metadata_index", "search_", "forgetting")),
    ("ledger_obj", ("write", "bulk")),
    ("orchestrator_obj", ("start_cognitive_cycle_for_",)),
    ("autotelic_obj", ("begun", "seen", "pending", "audited_through")),
    ("memory_manager_obj", ("activate_expert_", "ram_cache*")),
    ("robin_prototype_obj", ("pillars", "name", "parent*", "synthesize_response_for_")),
    ("robin_prototype_obj.pillars.sage_facet_", ("name",)),
    ("codex_obj", ("personas", "name")),
    ("morphic_ui_obj", ("incarnation", "restore_incarnation_")),
]


@pytest.mark.parametrize("role", ["write", "admin"])
def test_no_message_changes_what_the_system_stands_on(image, role):
    with message(image, role) as root:
        before = {name: slots(root, name) for name, obj in root.items() if isinstance(obj, batos.UvmObject)}
        for target, names in KEPT:
            for name in names:
                for value in ("x", 5, None, []):
                    if not (name.endswith("*") and not isinstance(value, list)):
                        assert told(root, target, "setSlot_value_", name, value) == "Protected", (target, name)
                assert told(root, target, "removeSlot_", name) in ("Protected", "NotFound"), (target, name)
        assert before == {name: slots(root, name) for name in before}


def test_every_root_object_has_a_kind_that_says_what_changes_it(image):
    with batos.reading(image) as root:
        named = {name: batos.kind_name(obj) for name, obj in root.items() if isinstance(obj, batos.UvmObject)}
    assert None not in named.values() and len(named) > 15
    assert all(kind.by for kind in batos.KINDS.values())


def test_what_is_protected_goes_by_the_object_and_not_by_its_name(image):
    with message(image) as root:
        oid = batos.oid_text(root["pLLM_obj"]._p_oid)
        assert told(root, oid, "setSlot_value_", "model_blob", "x") == "Protected"
        assert told(root, oid, "setSlot:value:", "model_blob", "x") == "Protected"
        clone = batos.send(root["genesis_obj"], "clone")
        batos.send(clone, "setSlot_value_", "parent*", [root["traits_obj"]])
        batos.send(clone, "setSlot_value_", "model_blob", "mine")
        assert clone.model_blob == "mine"


def test_a_cycle_and_its_steps_are_no_ones_to_change(image):
    brief = {"type": "direct_synthesis", "selector": "ask", "args": ["What?"]}
    with message(image) as root:
        cycle = batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief)
        oid = batos.cycle_id(cycle)
        for name in ("who", "result", "mission_brief", "synthesis_state*"):
            assert told(root, oid, "setSlot_value_", name, []) == "Protected"
        assert cycle.who == "eve"


def test_texts_of_the_codex_are_revised_in_their_shape(image):
    with message(image) as root:
        codex = root["codex_obj"]
        rows = {**codex.archetypes, "Factual Inquiry": {**codex.archetypes["Factual Inquiry"], "lead": "ROBIN"}}
        for target, slot, good, bad in (
                ("codex_obj", "archetypes", rows, ({}, 5, {**rows, "x": {}}, {**rows, "Factual Inquiry": {"lead": "EVE"}})),
                ("codex_obj", "prompts", {"all": "Be brief."}, ({}, {"plan": "x"}, {"all": 5}, {"all": "a", "poem": "b"})),
                ("robin_prototype_obj", "core_mission", "To be kind.", ("", " ", 5, None, "x" * 8001)),
                ("robin_prototype_obj.pillars.sage_facet_", "intent", "Look twice.", (5, "", None)),
                ("morphic_ui_obj", "changes", {"title": "Mine"}, (5, [1]))):
            for value in bad:
                assert told(root, target, "setSlot_value_", slot, value) == "BadSlot", (slot, value)
            assert told(root, target, "removeSlot_", slot) == "BadSlot"
            batos.send(batos.resolve(root, target), "setSlot_value_", slot, good)
            assert getattr(batos.resolve(root, target), slot) == good


def test_a_root_object_takes_stored_methods_of_new_selectors_alone(image):
    source = "def {}(self):\n    return 1\n"
    with batos.writing(image) as root:
        batos.bring_in(root["traits_obj"], "hum", source.format("hum"), author="ann")
        for target, name in (("traits_obj", "_process_synthesis_"), ("traits_obj", "result"), ("pLLM_obj", "model_blob"),
                             ("knowledge_catalog_obj", "search_"), ("psm_prototypes_obj", "hum")):
            with pytest.raises(batos.BatosError):
                batos.bring_in(root[target], name, source.format(name), author="ann")
        assert "hum" in root["traits_obj"]._slots and "result" not in root["traits_obj"]._slots


SHOW = {"type": "unhandled_message", "args": [], "kwargs": {}}


@pytest.mark.parametrize("selector", ["display_yourself", "display:yourself", "ingest_and_display_yourself"])
def test_a_role_belongs_to_what_is_run_however_it_is_reached(image, selector):
    """By its name in another spelling, by a slot that refers to the method, by a mission about it."""
    with batos.writing(image) as root:
        for name in batos.UI_MESSAGES:
            batos.set_slot(root["genesis_obj"], name, batos.method(name))
    with message(image) as root:
        it = batos.send(root["genesis_obj"], "clone")
        method = batos.send(root["genesis_obj"], "getSlot_", batos.selector_name(selector))
        batos.send(it, "setSlot_value_", "detour", method)
        assert told(root, "genesis_obj", selector) == "Forbidden"
        with pytest.raises(batos.Forbidden):
            batos.send(it, "detour")
        brief = {**SHOW, "selector": selector}
        assert told(root, "orchestrator_obj", "start_cognitive_cycle_for_", brief, "genesis_obj") == "Forbidden"
        assert not len(root["missions"])


def test_identity_and_limits_come_from_no_argument(image):
    brief = {"type": "direct_synthesis", "selector": "ask", "args": ["What?"]}
    with message(image) as root:
        with pytest.raises(TypeError):
            batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, None, "UVM_INTERNAL", 10 ** 9)
        for bad in (5, None, {}, {"type": "direct_synthesis"}, {**brief, "args": 5}, {**brief, "kwargs": []}):
            assert told(root, "orchestrator_obj", "start_cognitive_cycle_for_", bad) == "BadRequest"


def test_data_of_the_system_is_none_for_written_methods(image):
    with batos.reading(image) as root:
        mind, genesis = root["pLLM_obj"], root["genesis_obj"]
        assert not batos._is_data_slot(mind, "model_blob", mind.model_blob)
        assert not batos._is_data_slot(root["codex_obj"], "personas", root["codex_obj"].personas)
        assert batos._is_data_slot(genesis, "description", genesis.description)
        assert not batos._is_data_slot(genesis, "held", [[genesis]])
