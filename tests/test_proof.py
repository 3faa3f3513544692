"""The proof: whatever the seeds' own messages are sent with, no root object is changed but by those that say so."""

import random

import pytest

import batos

WAIT_S = 300


class Bench:
    """An image with all its objects, and the lanes that run messages in it."""

    def __init__(self, folder):
        self.image = batos.Image.open(str(folder / "image.fs"))
        batos.genesis(self.image)
        self.settings = batos.load_settings({}, {})
        self.write = batos.WriteLane(self.image, batos.WriteToken(), self.settings).start()

    def send(self, target, selector, *args, role="write", who="ann"):
        """Send a message as a client of a role does; returns its answer."""
        def apply(root):
            return batos.to_wire(batos._send_checked(batos.resolve(root, target), selector, args, {}))
        return self.write.call(batos.Job("send_message", apply, who=who, role=role, system=False), WAIT_S).result

    def slots(self):
        """Return {(root name, slot): what stands there} of all root objects but the ledger, which tells each change."""
        with batos.reading(self.image) as root:
            found = {}
            for name, obj in root.items():
                if isinstance(obj, batos.UvmObject) and name != "ledger_obj":
                    found |= {(name, slot): told(value) for slot, value in batos.own(obj).items()}
            return found

    def close(self):
        self.write.close()
        self.image.close()


def told(value):
    if isinstance(value, batos.BTREES):
        return type(value).__name__, sorted(map(str, value.keys()))
    if isinstance(value, batos.UvmObject):
        return value._p_oid
    if isinstance(value, list | tuple):
        return [told(item) for item in value]
    return repr(value)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


ARGUMENTS = ((), ("x",), (["x"],), (7, "y"), ({"a": 1},), (None,), (True, [1, 2]), (b"\0\xff", -1), (2.5, {"b": []}), ("", ""))
OWN_WORDS = ("infer_", "reflectOn_", "load_adapter_", "set_adapter_", "delete_adapter_", "improveCognition", "fineTuneWith_",
             "display_ui", "cacheExpert_withWeights_", "activate_expert_", "isLoaded", "isCached", "fetchBlobFor",
             "requestSpaceFor", "updateManifest", "synthesize_response_for_", "_process_synthesis_", "_doesNotUnderstand_",
             "doesNotUnderstand_", "parent*", "synthesis_state*", "model_id", "model_blob", "lora_repository", "core_mission",
             "pillars", "text_index", "metadata_index", "chunk_storage", "index_document_", "unindex_document_", "search_",
             "start_cognitive_cycle_for_", "mission_brief", "target_oid", "_tmp_synthesis_data", "name", "description")
# What a message may write: the objects that it is meant to change
WRITES = {"index_document_", "unindex_document_", "start_cognitive_cycle_for_"}


def seed_messages(bench):
    """Return [(root name, selector, args)] of the seeds' words and of every root object's own, in a seeded order."""
    words = []
    with batos.reading(bench.image) as root:
        for name, obj in root.items():
            if isinstance(obj, batos.UvmObject):
                own = [slot for slot in batos.own(obj) if slot != "_pointers"]
                words += [(name, word) for word in dict.fromkeys((*own, *OWN_WORDS)) if word not in WRITES]
    messages = [(name, word, args) for name, word in words for args in ARGUMENTS]
    random.Random(17).shuffle(messages)
    return messages


@pytest.mark.slow
@pytest.mark.parametrize("role", ["write", "admin"])
def test_no_message_of_the_seeds_changes_a_root_object(bench, role):
    before, unexpected = bench.slots(), []
    for target, selector, args in seed_messages(bench):
        for message in ((selector, *args), ("setSlot_value_", selector, args[0] if args else 5)):
            if message[0] == "setSlot_value_" and bench_allows(target, selector):
                continue
            try:
                bench.send(target, *message, role=role)
            except batos.BatosError:
                continue
            except Exception as error:
                unexpected.append((target, message, repr(error)))
    after = bench.slots()
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert changed == []
    assert unexpected == [], unexpected[:5]
    bench.write.close()
    bench.image.close()
    assert batos.check_image(bench.image.path, deep=True)["faults"] == []
    bench.image = batos.Image.open(bench.image.path)
    bench.write = batos.WriteLane(bench.image, batos.WriteToken(), bench.settings).start()


def bench_allows(target, selector):
    """Whether a root object may be given a slot of that name: data of its own, or a text of the codex."""
    kinds = [kind for kind in batos.KINDS.values() if target in kind.roots]
    return any(kind.grows or selector in kind.texts for kind in kinds) or not kinds


def test_what_writes_the_memory_is_no_message_to_a_clone_of_it(bench):
    clone = bench.send("knowledge_catalog_obj", "clone")["$ref"]
    bench.send(clone, "setSlot_value_", "text_index", None)
    for selector, *args in (("index_document_", "a", "some text"), ("unindex_document_", "a"), ("supersede_", "a", "b")):
        with pytest.raises(batos.BadRequest, match="is a message to knowledge_catalog_obj"):
            bench.send(clone, selector, *args)


def test_who_begins_a_mission_is_told_by_no_argument(bench):
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["What is a valve?"], "kwargs": {}}
    with pytest.raises(batos.BadRequest):
        bench.send("orchestrator_obj", "start_cognitive_cycle_for_", brief, None, "UVM_AUTOTELIC", 1, 1)
    cycle = bench.send("orchestrator_obj", "start_cognitive_cycle_for_", brief, who="eve")["$ref"]
    with batos.reading(bench.image) as root:
        assert batos.find_cycle(root, cycle).who == "eve"
