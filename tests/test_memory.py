"""The memory manager: LoRA experts in blobs, in RAM and in adapter slots; how they come into the image."""

import collections
import contextlib
import json
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import types

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import batos
from batos import CoreRequest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SEED = ROOT / "seed_core"
WAIT_S = 300
PLAN = ("plan", {"mission": "How does the old pump keep the water moving?", "offered": []})
SIZES = json.loads((SEED / "config.json").read_text())
TARGETS = ("q_proj", "v_proj", "down_proj")


def shapes(rank, targets=TARGETS):
    """The shapes of an adapter's matrices for the embedded core."""
    wide, head = SIZES["hidden_size"], SIZES["head_dim"]
    out = {"q_proj": SIZES["num_attention_heads"] * head, "k_proj": SIZES["num_key_value_heads"] * head,
           "v_proj": SIZES["num_key_value_heads"] * head, "down_proj": wide}
    found = {}
    for layer in range(SIZES["num_hidden_layers"]):
        for target in targets:
            module = f"model.layers.{layer}.{'mlp' if target == 'down_proj' else 'self_attn'}.{target}"
            found[f"{module}.lora_A.weight"] = (rank, SIZES["intermediate_size"] if target == "down_proj" else wide)
            found[f"{module}.lora_B.weight"] = (out[target], rank)
    return found


def strength(key, std):
    """How large a matrix's numbers are: the last layer's, which no layer after it makes more of, decide what is said.

    So an expert says something of its own, and rounding (the four-bit kernel computes in bfloat16) does not decide.
    """
    if "down_proj" not in key:
        return std / 100
    return 3 * std if f".{SIZES['num_hidden_layers'] - 1}." in key else 0.0


def stage(folder, name, seed=0, rank=4, targets=TARGETS, std=0.1, flat=False, **config):
    """Write an adapter with random weights as PEFT does, or flat; returns its weights' path."""
    rng = numpy.random.default_rng(seed)
    tensors = {f"base_model.model.{key}": rng.normal(0, strength(key, std), shape).astype(numpy.float32)
               for key, shape in shapes(rank, targets).items()}
    path = pathlib.Path(folder) / (f"{name}.safetensors" if flat else name)
    if flat:
        save_file(tensors, path, {key: str(value) for key, value in config.items()})
        return path
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 32, "target_modules": list(targets),
                                                          "peft_type": "LORA"} | config))
    return path / "adapter_model.safetensors"


def incarnation(folder, rank_most=16):
    one = batos.Incarnation([folder], rank_most)
    one.before()
    return one


@pytest.fixture
def image(tmp_path):
    one = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(one, SEED)
    yield one
    one.close()


def bring_in(image, folder):
    with batos.writing(image) as root:
        return incarnation(folder).apply(root)["result"]


def proxy(image, name):
    """The slots of an expert's proxy."""
    with batos.reading(image) as root:
        one = root["pLLM_obj"].lora_repository[name]
        return {slot: getattr(one, slot) for slot in ("version", "rank", "alpha", "base", "targets", "sha256", "lineage")} | {
            "blob": pathlib.Path(batos.blob_path(one.model_blob)).read_bytes()}


# Staged files


def test_both_layouts_are_read(tmp_path):
    stage(tmp_path, "robin", rank=8, revision="f" * 32)
    stage(tmp_path, "brick", flat=True)
    stage(tmp_path, "loud", flat=True, lora_alpha=7)
    found = {one.name: one for one in incarnation(tmp_path).staged}
    assert set(found) == {"ROBIN", "BRICK", "LOUD"}
    assert (found["ROBIN"].rank, found["ROBIN"].alpha, found["ROBIN"].base) == (8, 32.0, "f" * 32)
    assert (found["BRICK"].rank, found["BRICK"].alpha, found["BRICK"].base) == (4, 32.0, None)         # of the seeds
    assert found["LOUD"].alpha == 7.0 and found["LOUD"].targets == ("down_proj", "q_proj", "v_proj")


def damaged(folder, how):
    path = stage(folder, "BAD", **how.get("config", {}))
    if "cut" in how:
        path.write_bytes(path.read_bytes()[:how["cut"]])
    if "bytes" in how:
        path.write_bytes(how["bytes"])
    if "rename" in how:
        path.rename(path.with_name(how["rename"]))


@pytest.mark.parametrize("how, words", [
    ({"cut": -100}, "no whole safetensors"), ({"cut": 4}, "no whole safetensors"), ({"cut": 0}, "no whole safetensors"),
    ({"bytes": pickle.dumps({"a": 1})}, "pickle"), ({"bytes": b"PK\x03\x04rest"}, "pickle"),
    ({"bytes": b"\xff" * 4000}, "no whole safetensors"), ({"bytes": b"\x02" + bytes(7) + b"[]"}, "no whole safetensors"),
    ({"rename": "adapter_model.bin", "bytes": pickle.dumps([1])}, "pickle"),
    ({"config": {"rank": 32}}, r"rank 32.*up to 16"), ({"config": {"r": 8}}, "rank 8.*rank 4"),
    ({"config": {"use_dora": True}}, "DoRA True"), ({"config": {"bias": "all"}}, "'all'"),
    ({"config": {"lora_alpha": "much"}}, "lora_alpha .*much"),
])
def test_what_is_not_right_is_refused_and_the_others_come(tmp_path, image, how, words):
    damaged(tmp_path / "staged", how)
    stage(tmp_path / "staged", "GOOD")
    told = bring_in(image, tmp_path / "staged")
    assert told["incarnated"] == ["GOOD version 1"] and len(told["refused"]) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(told["refused"][0])


# Files that somebody made to be refused: each its own way of being wrong

SIDE_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SIDE_B = SIDE_A.replace("_A", "_B")
RIGHT = {"r": 2, "lora_alpha": 32}


def told_tensor(shape, start, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def sides(a=None, b=None, **more):
    """Return the header of an adapter of rank 2, with one of its sides as it is given."""
    return {SIDE_A: a or told_tensor([2, 4], 0, 32), SIDE_B: b or told_tensor([4, 2], 32, 64), **more}


def file_of(header, size=64):
    """Return the bytes of a safetensors file with that header, as text or as what becomes JSON, and so many bytes of data."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


DEEP = b"[" * 100_000
HOSTILE_WEIGHTS = {
    "a header nested without end": file_of(b'{"a":' + DEEP + b"]" * 100_000 + b"}"),
    "a header that never closes": file_of(b'{"a":' + DEEP), "a header that is a list": file_of([]),
    "a header larger than the file": (1 << 20).to_bytes(8, "little") + b"{}",
    "a header of 2**63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "a shape that is text": file_of(sides(a=told_tensor("ab", 0, 32))),
    "a shape of fractions": file_of(sides(a=told_tensor([2.5, 4], 0, 32))),
    "a negative shape": file_of(sides(a=told_tensor([-2, -4], 0, 32))),
    "a shape of 2**62": file_of(sides(a=told_tensor([2 ** 62, 4], 0, 32))),
    "no rows at all": file_of(sides(told_tensor([0, 4], 0, 0), told_tensor([4, 0], 0, 0)), 0),
    "a type that is none": file_of(sides(a=told_tensor([2, 4], 0, 32, "F99"))),
    "a type that is not served": file_of(sides(told_tensor([2, 4], 0, 8, "I8"), told_tensor([4, 2], 8, 16, "I8")), 16),
    "sizes that do not match": file_of(sides(a=told_tensor([2, 5], 0, 32))),
    "offsets that overlap": file_of(sides(b=told_tensor([4, 2], 16, 48)), 48),
    "offsets with a gap": file_of(sides(b=told_tensor([4, 2], 40, 72)), 72),
    "bytes behind the end": file_of(sides(), 70), "metadata that is a list": file_of({"__metadata__": [1], **sides()}),
    "metadata of a list": file_of({"__metadata__": {"r": [1]}, **sides()}),
    "NaN for alpha in its metadata": file_of({"__metadata__": {"lora_alpha": "NaN"}, **sides()}),
    "sides of two ranks": file_of(sides(b=told_tensor([2, 4], 32, 64))),
    "one side alone": file_of({SIDE_A: told_tensor([2, 4], 0, 32)}, 32),
}
HOSTILE_CONFIGS = {
    "a list": b"[]", "nested without end": DEEP, "a list for r": json.dumps({**RIGHT, "r": [2]}).encode(),
    "r that is no integer": b'{"r": "1e9"}', "r of NaN": b'{"r": NaN}', "alpha of NaN": b'{"r": 2, "lora_alpha": NaN}',
    "alpha without end": b'{"r": 2, "lora_alpha": 1e999}', "no text": b"\xff\xfe\x00",
    "a revision that is a map": json.dumps({**RIGHT, "revision": {}}).encode(), "of 2 MB": b" " * (2 << 20) + b"{}",
}


def stage_hostile(folder, weights, config):
    (folder / "BAD").mkdir(parents=True)
    (folder / "BAD/adapter_model.safetensors").write_bytes(weights)
    if config is not None:
        (folder / "BAD/adapter_config.json").write_bytes(config)


@pytest.mark.parametrize("weights, config", [
    *[pytest.param(weights, json.dumps(RIGHT).encode(), id=f"weights: {name}") for name, weights in HOSTILE_WEIGHTS.items()
      if "metadata" not in name],
    *[pytest.param(file_of(sides()), config, id=f"configuration: {name}") for name, config in HOSTILE_CONFIGS.items()]])
def test_a_hostile_adapter_is_refused_by_name_and_the_others_come(tmp_path, image, weights, config):
    stage_hostile(tmp_path / "staged", weights, config)
    stage(tmp_path / "staged", "GOOD")
    told = bring_in(image, tmp_path / "staged")
    assert told["incarnated"] == ["GOOD version 1"] and len(told["refused"]) == 1
    assert "BAD" in told["refused"][0] or "adapter_" in told["refused"][0]
    assert len(told["refused"][0]) < 700


@pytest.mark.parametrize("name", [name for name in HOSTILE_WEIGHTS if "metadata" in name])
def test_metadata_of_a_flat_file_is_read_as_a_configuration_is(tmp_path, name):
    (tmp_path / "BAD.safetensors").write_bytes(HOSTILE_WEIGHTS[name])
    one = incarnation(tmp_path)
    assert not one.staged and len(one.refused) == 1


def test_the_hostile_ones_are_wrong_in_what_they_say_alone(tmp_path):
    stage_hostile(tmp_path, file_of(sides()), json.dumps(RIGHT).encode())
    assert [one.rank for one in incarnation(tmp_path).staged] == [2]


@pytest.mark.parametrize("name", ["BAD.safetensors", "BAD/adapter_model.safetensors", "BAD/adapter_config.json"])
@pytest.mark.parametrize("make", [
    os.mkfifo, os.mkdir, lambda path: os.symlink(path, path), lambda path: os.symlink("/dev/zero", path)],
    ids=["pipe", "folder", "loop", "device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, name, make):
    stage(tmp_path, "GOOD")
    path = tmp_path / name
    if path.parent != tmp_path:
        stage_hostile(tmp_path, file_of(sides()), json.dumps(RIGHT).encode())
        path.unlink()
    make(path)
    one = incarnation(tmp_path)
    assert [staged.name for staged in one.staged] == ["GOOD"]
    assert name.startswith("BAD.") and make is os.mkdir or len(one.refused) == 1


def test_flags_of_metadata_are_read_as_what_they_say(tmp_path):
    for name, told in (("YES", "True"), ("NO", "False")):
        metadata = {"r": "2", "lora_alpha": "16", "use_rslora": told}
        (tmp_path / f"{name}.safetensors").write_bytes(file_of({"__metadata__": metadata, **sides()}))
    found = {one.name: (one.by_root, one.alpha) for one in incarnation(tmp_path).staged}
    assert found == {"YES": (True, 16.0), "NO": (False, 16.0)}


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, image):
    path, one = stage(tmp_path, "ROBIN", seed=1), None
    one = incarnation(tmp_path)
    stage(tmp_path, "ROBIN", seed=2)
    with batos.writing(image) as root:
        told = one.apply(root)["result"]
    assert told["incarnated"] == [] and "was changed while it was read" in told["refused"][0] and path.exists()


@pytest.mark.slow
def test_a_daemon_starts_whatever_lies_among_its_adapters(daemon, tmp_path):
    folder = tmp_path / "staged"
    for number, weights in enumerate(HOSTILE_WEIGHTS.values()):
        stage_hostile(folder / "made", weights, None)
        (folder / "made/BAD").rename(folder / f"W{number}")
    for number, config in enumerate(HOSTILE_CONFIGS.values()):
        stage_hostile(folder / "made", file_of(sides()), config)
        (folder / "made/BAD").rename(folder / f"C{number}")
    os.mkfifo(folder / "PIPE.safetensors")
    (folder / os.fsdecode(b"N\xff.safetensors")).write_bytes(b"x")
    stage(folder, "GOOD")
    running = daemon("--adapters", str(folder))
    with batos.Client(running.endpoint) as client:
        assert [row["expert"] for row in client.call("list_experts")["results"]] == ["GOOD"]
        assert len(client.call("incarnate")["result"]["refused"]) == len(HOSTILE_WEIGHTS) + len(HOSTILE_CONFIGS) + 2


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_pass_as_an_adapter(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "X.safetensors"
    path.write_bytes(data)
    assert not incarnation(path.parent).staged


def test_other_tensors_are_refused(tmp_path):
    save_file({"base_model.model.lm_head.weight": numpy.zeros((4, 4), numpy.float32)}, tmp_path / "X.safetensors")
    assert "only lora_A and lora_B" in incarnation(tmp_path).refused[0]
    assert batos._staged_files(tmp_path / "nowhere") == {}


# Incarnation


def test_incarnation_happens_once_and_a_changed_file_is_a_version(tmp_path, image):
    path = stage(tmp_path, "ROBIN", seed=1)
    assert bring_in(image, tmp_path)["incarnated"] == ["ROBIN version 1"]
    first = proxy(image, "ROBIN")
    assert first["blob"] == path.read_bytes() and (first["rank"], first["alpha"], first["lineage"]) == (4, 32.0, [])
    assert bring_in(image, tmp_path)["incarnated"] == []
    stage(tmp_path, "ROBIN", seed=2)
    assert bring_in(image, tmp_path)["incarnated"] == ["ROBIN version 2"]
    second = proxy(image, "ROBIN")
    assert second["lineage"] == [{"version": 1, "sha256": first["sha256"]}] and second["blob"] != first["blob"]


def test_one_for_another_base_is_refused_with_both_facts(tmp_path, image):
    stage(tmp_path, "ROBIN", revision="0" * 32)
    [refused] = bring_in(image, tmp_path)["refused"]
    with batos.reading(image) as root:
        base = batos.core_base([(record.name, record.sha256) for record in root["pLLM_obj"].model_blob])
    assert "0" * 32 in refused and base in refused
    stage(tmp_path, "ROBIN", revision=base)
    assert bring_in(image, tmp_path)["incarnated"] == ["ROBIN version 1"]


def test_the_base_of_a_core_is_its_weights_and_not_its_router():
    files = [("config.json", "a"), ("model.safetensors", "b"), ("tokenizer.json", "c")]
    base = batos.core_base(files)
    assert base == batos.core_base([*files[::-1], (batos.ROUTER_FILE, "d")]) and batos.core_base([]) is None
    assert base != batos.core_base([("config.json", "a"), ("model.safetensors", "other")])


KILLED = """
import pathlib, sys
sys.path.insert(0, sys.argv[3])
import batos
image = batos.Image.open(sys.argv[1])
incarnation = batos.Incarnation([sys.argv[2]], 16)
incarnation.before()
print("reading", flush=True)
with batos.writing(image) as root:
    incarnation.apply(root)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_leaves_all_or_none(tmp_path):
    staged, path, rng = tmp_path / "staged", str(tmp_path / "image.fs"), random.Random(5)
    names = [f"E{n}" for n in range(12)]
    for n, name in enumerate(names):
        stage(staged, name, seed=n, rank=16)
    image = batos.Image.open(path)
    batos.genesis(image)
    image.close()
    seen = collections.Counter()
    for round_ in range(8):
        one = subprocess.Popen([sys.executable, "-c", KILLED, path, str(staged), str(ROOT)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
        one.stdout.readline()
        time.sleep(rng.uniform(0, 0.12) if round_ < 7 else 0)
        if round_ == 7:
            one.stdout.readline()                        # the last one is let through
        os.kill(one.pid, signal.SIGKILL)
        one.communicate()
        image = batos.Image.open(path)
        with batos.reading(image) as root:
            held = list(root["pLLM_obj"].lora_repository)
        assert held in ([], sorted(names))
        for name in held:
            assert proxy(image, name)["blob"] == (staged / name / "adapter_model.safetensors").read_bytes()
        image.close()
        seen[bool(held)] += 1
    assert seen[True]


# The warm tier


class Block:
    """Stands for a tensor."""

    def __init__(self, nbytes):
        self.nbytes = nbytes


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.integers(1, 60), st.booleans())))
def test_the_ram_cache_is_lru_within_its_budget(steps):
    cache, model = batos.RamCache(100), collections.OrderedDict()
    for name, version, size, put in steps:
        if put:
            model.pop(name, None)
            while model and sum(block.nbytes for _, block in model.values()) + size > 100:
                model.popitem(last=False)
            model[name] = version, Block(size)
            cache.put(name, *model[name])
        elif name in model and model[name][0] == version:
            model.move_to_end(name)
            assert cache.get(name, version) is model[name][1]
        else:
            model.pop(name, None)
            assert cache.get(name, version) is None
        assert cache.names() == list(model) and cache.bytes == sum(block.nbytes for _, block in model.values()) <= 100


def test_what_is_larger_than_the_budget_is_not_kept():
    cache = batos.RamCache(10)
    cache.put("a", 1, Block(11))
    assert cache.names() == [] and cache.bytes == 0


# Slots, with the real core


@contextlib.contextmanager
def memory_of(folder, staged, **options):
    """A core with the experts of a folder, through an image, as the daemon has it."""
    image = batos.Image.open(str(folder / "image.fs"))
    wanted = batos.load_settings({"core": str(SEED), "adapters": str(staged), **options})
    batos.genesis(image, SEED)
    told = batos.incarnate_staged(image, wanted)
    assert not told["result"]["refused"]
    synapses = batos.SynapticMemory(image, wanted)
    synapses.refresh()
    core = batos.CognitiveCore(lambda: SEED, threads=1)
    core.synapses = synapses
    core.start().wait_ready(WAIT_S)
    try:
        yield core, synapses
    finally:
        core.close()
        image.close()


NAMES = [*batos.PILLARS, *(f"E{n}" for n in range(8))]


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """Twelve experts, four of them the personas, of ranks 2, 4 and 16; six slots."""
    folder = tmp_path_factory.mktemp("experts")
    for n, name in enumerate(NAMES):
        stage(folder / "staged", name, seed=n, rank=(2, 4, 16)[n % 3])
    with memory_of(folder, folder / "staged", adapter_slots=6, ram_cache_mb=1.5) as both:
        yield both


TOKENS = 5                         # of free text: with more, two words may come out equally likely, and rounding decides


def told(core, *experts, tokens=TOKENS):
    """What a plain prompt is answered with, row by row, in one batch."""
    read = batos.CognitiveCore._ask
    rows = [batos.CoreRow(lambda loaded: loaded.encode("the old pump"), lambda text: text, None,
                          CoreRequest("", {}, expert), tokens) for expert in experts]
    return [answer.text for answer in read(core, rows, {}, cut_is_fine=True)]


@pytest.fixture(scope="module")
def alone(memory):
    """What each expert answers to a plain prompt as the only row: name -> text."""
    core, _ = memory
    return {name: told(core, name)[0] for name in NAMES}


@pytest.mark.slow
def test_the_slots_are_views_of_one_buffer(memory):
    core, synapses = memory

    def look(loaded):
        flat, slots = loaded.slots.flat, loaded.slots
        start, end = flat.data_ptr(), flat.data_ptr() + flat.nbytes
        inside = [start <= weight.data_ptr() < end for name, weight in loaded.model.named_parameters() if "lora_" in name]
        return len(slots.held), all(inside), len(inside)
    count, inside, matrices = core.on_model_thread(look)
    assert count == 6 and inside and matrices == 6 * len(shapes(1))
    assert set(batos.PILLARS) <= set(synapses.slots.used)                     # hot from the start


@pytest.mark.slow
def test_an_expert_in_a_slot_changes_the_model_as_by_peft_itself(memory):
    """The logits move by the same; what is left is rounding, as the four-bit kernel computes in bfloat16."""
    core, synapses = memory

    def compare(loaded):
        peft, torch = batos.need("peft", "tests"), batos.need("torch", "tests")
        other, model, likeness = batos.load_core(SEED), None, {}
        ids = torch.tensor([other.encode("the old pump")])
        with torch.inference_mode():
            base = other.model(input_ids=ids).logits[0, -1]
            for name in NAMES:                           # more than there are slots, and of smaller ranks
                expert = synapses.experts[name]
                config = peft.LoraConfig(task_type="CAUSAL_LM", r=expert.rank, lora_alpha=expert.alpha,
                                         target_modules=list(TARGETS), inference_mode=True)
                if model is None:
                    model = peft.PeftModel(other.model, config, adapter_name=name)
                else:
                    model.add_adapter(name, config)
                tensors = {f"base_model.model.{key}": weights for key, weights in synapses.tensors(name).items()}
                peft.set_peft_model_state_dict(model, tensors, adapter_name=name)
                model.set_adapter(name)
                model.eval()
                synapses.hold(loaded.slots, name)
                loaded.slots.in_use.clear()
                theirs = model(input_ids=ids).logits[0, -1] - base
                ours = loaded.model(input_ids=ids, adapter_names=[loaded.slots.row_name(name)]).logits[0, -1] - base
                cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
                likeness[name] = cosine.item(), (ours.norm() / theirs.norm()).item()
        batos._drop_adapter_hooks(loaded.model)
        return likeness
    for name, (cosine, ratio) in core.on_model_thread(compare).items():
        assert cosine > 0.99 and 0.95 < ratio < 1.05, (name, cosine, ratio)


def test_a_mixed_batch_answers_as_its_rows_alone(memory, alone):
    core, _ = memory
    assert len(set(alone.values())) > 6
    base = told(core, batos.BASE)[0]
    experts = ["ROBIN", "E1", batos.BASE, "ALFRED", "E2", "ROBIN", "BABS", "BRICK"]
    assert told(core, *experts) == [alone.get(name, base) for name in experts]


@pytest.mark.slow
def test_switching_at_random_stays_right_and_within_the_budgets(memory, alone):
    core, synapses = memory
    rng, before = random.Random(3), synapses.slots.evictions
    for _ in range(25):
        experts = [*rng.sample(NAMES[:4], rng.randint(0, 3)), *rng.sample(NAMES[4:], rng.randint(1, 2))]
        assert told(core, *experts) == [alone[name] for name in experts]
        assert synapses.cache.bytes <= synapses.cache.budget_bytes and set(batos.PILLARS) <= set(synapses.slots.used)
    assert synapses.slots.evictions > before and synapses.cache.evictions
    health = synapses.health()
    assert health["found"]["hot"] and health["found"]["cold"] and health["hot"]["base_mb"] > 0
    assert {row["expert"] for row in synapses.listed()} == set(NAMES)


@pytest.mark.slow
def test_promotions_meanwhile_change_no_answer_in_flight(memory, alone):
    core, _ = memory
    wrong, stop = [], threading.Event()

    def ask(seed):
        rng = random.Random(seed)
        while not stop.is_set():
            name = rng.choice(NAMES)
            got = told(core, name)
            if got != [alone[name]]:
                wrong.append((name, got))
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(6)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_experts_than_slots_are_refused_at_once(memory):
    core, _ = memory
    with pytest.raises(batos.BadRequest, match="up to 2 experts beside the personas"):
        told(core, *NAMES[:7])
    with pytest.raises(batos.NotFound, match="ROBIN"):
        told(core, "ROBBIN")
    assert core.expert("ROBBIN") == core.expert(None) == batos.BASE and core.expert("E3") == "E3"


def hooks(loaded):
    return sum(len(layer._forward_pre_hooks) for layer in loaded.model.modules())


def test_hooks_that_peft_leaves_are_removed(memory, alone, monkeypatch):
    """FACTS 4: an exception inside generate(adapter_names=…) leaves hooks that make later plain calls fail."""
    core, _ = memory
    before = core.on_model_thread(hooks)
    torch = batos.need("torch", "tests")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "from_numpy", lambda *args: 1 / 0)
        with pytest.raises(batos.CoreFailed, match="ZeroDivisionError"):
            told(core, "ROBIN")
        patch.setattr(batos, "_drop_adapter_hooks", lambda model: None)
        with pytest.raises(batos.CoreFailed):
            told(core, "ROBIN")
        assert core.on_model_thread(hooks) > before      # the trap is still there
    core.on_model_thread(lambda loaded: batos._drop_adapter_hooks(loaded.model))
    assert core.on_model_thread(hooks) == before
    assert told(core, "ROBIN", "E0") == [alone["ROBIN"], alone["E0"]]


def test_a_cancelled_row_leaves_the_slots_as_they_were(memory, alone):
    core, _ = memory
    cancel = threading.Event()
    with pytest.raises(batos.Cancelled):
        core.infer([CoreRequest(*PLAN, adapter="E5", cancel=cancel, on_text=lambda piece: cancel.set())])
    assert told(core, "E5", "ROBIN") == [alone["E5"], alone["ROBIN"]]


def test_a_new_version_is_what_answers_next(memory, alone, tmp_path):
    core, synapses = memory
    stage(tmp_path, "E7", seed=99, rank=4)
    assert told(core, "E7") == [alone["E7"]]
    with batos.writing(synapses.image) as root:
        incarnation(tmp_path).apply(root)
    batos.look_at_experts(synapses, core)
    changed = told(core, "E7")
    assert changed != [alone["E7"]] and synapses.experts["E7"].version == 2


def test_what_does_not_fit_stays_cold_and_says_so(memory, tmp_path):
    core, synapses = memory
    stage(tmp_path, "OTHER", targets=("k_proj",))
    stage(tmp_path, "HIGH", rank=32)
    path = stage(tmp_path, "ODD")
    tensors = {f"base_model.model.{key}": numpy.zeros((shape[0], 8) if "lora_A" in key else shape, numpy.float32)
               for key, shape in shapes(4).items()}
    save_file(tensors, path)
    with batos.writing(synapses.image) as root:
        incarnation(tmp_path, 64).apply(root)
    batos.look_at_experts(synapses, core)
    with pytest.raises(batos.AdapterMismatch, match="k_proj have no slots until the next start"):
        told(core, "OTHER")
    with pytest.raises(batos.AdapterMismatch, match="rank 32, the slots are of 16"):
        told(core, "HIGH")
    for _ in range(2):
        with pytest.raises(batos.AdapterMismatch, match=r"\(4, 8\)"):
            told(core, "ODD")
    notes = {row["expert"]: row["note"] for row in synapses.listed()}
    assert all(notes[name] for name in ("OTHER", "HIGH", "ODD")) and notes["ROBIN"] is None


def test_what_is_fetched_ahead_is_warm(memory):
    core, synapses = memory
    told(core, "E0", "E1")
    for name in NAMES[6:]:                               # push others out of RAM
        synapses.fetch_ahead([name])
    cold = next(name for name in NAMES[4:] if synapses.tier(name) == "cold")
    synapses.fetch_ahead([cold])
    assert synapses.tier(cold) == "warm"


def test_the_protocol_is_walked_step_by_step(memory):
    core, synapses = memory
    for name in ("E0", "E1"):
        told(core, name)                                 # so that none of the next two is hot
    told(core, "E2", "E3")
    walked = batos.activate(synapses, core, "e0")
    steps = [step for step, _ in walked["steps"]]
    assert steps == [*(["isLoaded", "isCached"]), *(["fetchBlobFor"] if walked["from"] == "cold" else []),
                     "requestSpaceFor", "load", "set_adapter", "updateManifest"]
    assert dict(walked["steps"])["isLoaded"] is False and "E0" in dict(walked["steps"])["updateManifest"]
    assert dict(walked["steps"])["requestSpaceFor"] in {"E2", "E3"}
    again = batos.activate(synapses, core, "E0")
    assert again["from"] == "hot" and [step for step, _ in again["steps"]] == ["isLoaded", "set_adapter", "updateManifest"]
    with pytest.raises(batos.NotFound):
        batos.activate(synapses, core, "nobody")


def test_the_objects_answer_for_the_tiers(memory):
    core, synapses = memory
    batos.activate(synapses, core, "E4")
    asked = []
    synapses.want = asked.append
    with batos.reading(synapses.image) as root:
        manifest, cache, repository = (root[f"{name}_obj"] for name in ("vram_manifest", "ram_cache", "nvme_repository"))
        manager = root["memory_manager_obj"]
        assert batos.send(manifest, "isLoaded:", "E4") is True and batos.send(manager, "isCached_", "E4") is True
        record = batos.send(repository, "fetchBlobFor:", "ROBIN")
        assert record.sha256 == batos.send(repository, "fetchBlobFor_", root["pLLM_obj"].lora_repository["ROBIN"]).sha256
        assert batos.send(cache, "fetchFromCache:", "E4")["version"] == 1
        assert batos.send(manifest, "requestSpaceFor:", 1000) in synapses.slots.used
        with pytest.raises(batos.AdapterMismatch, match="has no room"):
            batos.send(manifest, "requestSpaceFor:", 1 << 40)
        assert batos.send(manifest, "updateManifest_")["slots"] == 6
        cold = next(name for name in NAMES if synapses.tier(name) != "hot")
        assert batos.send(manager, "activateExpert:", cold)["activating"] and asked == [cold]
        assert not batos.send(manager, "activate_expert_", "E4")["activating"]
        with pytest.raises(batos.NotFound):
            batos.send(repository, "fetchBlobFor_", "nobody")


def test_the_models_verbs_are_messages(memory):
    core, synapses = memory
    batos.activate(synapses, core, "E5")
    wanted, dropped = [], []
    synapses.want, synapses.unload = wanted.append, dropped.append
    with batos.reading(synapses.image) as root:
        pllm = root["pLLM_obj"]
        cold = next(name for name in NAMES if synapses.tier(name) != "hot")
        assert batos.send(pllm, "set_adapter:", cold.lower())["activating"]
        assert batos.send(root["genesis_obj"], "load_adapter", adapter_name=cold)["activating"]
        assert batos.send(pllm, "set_adapter_", "ROBIN") == {"expert": "ROBIN", "tier": "hot", "activating": False}
        assert batos.send(pllm, "delete_adapter:", "E5") == {"expert": "E5", "tier": "hot", "unloading": True}
        with pytest.raises(batos.BadRequest, match="always hot"):
            batos.send(pllm, "delete_adapter_", "ROBIN")
        for selector in ("set_adapter_", "load_adapter_", "delete_adapter_"):
            with pytest.raises(batos.NotFound):
                batos.send(pllm, selector, "nobody")
    assert wanted == [cold, cold] and dropped == ["E5"]
    batos.unload(synapses, core, "E5")
    assert synapses.tier("E5") == "cold" and told(core, "E5") and synapses.tier("E5") == "hot"


def test_an_expert_is_cached_with_its_own_weights_alone(memory, tmp_path):
    core, synapses = memory
    batos.unload(synapses, core, "E6")
    asked = []
    synapses.warm = asked.append
    stage(tmp_path, "E6", seed=99, rank=4)
    with batos.reading(synapses.image) as root:
        cache, proxy = root["ram_cache_obj"], root["pLLM_obj"].lora_repository["E6"]
        mine = pathlib.Path(batos.blob_path(proxy.model_blob)).read_bytes()
        for weights in (proxy, proxy.model_blob, mine):
            assert batos.send(cache, "cacheExpert:withWeights:", "E6", weights)["caching"]
        others = next(tmp_path.rglob("*.safetensors")).read_bytes()
        for weights, words in ((others, "other weights"), (mine[:-1], "no whole safetensors"), (b"PK\x03\x04", "pickle")):
            with pytest.raises(batos.AdapterMismatch, match=words):
                batos.send(cache, "cacheExpert_withWeights_", "E6", weights)
        with pytest.raises(batos.BadRequest, match="weights are"):
            batos.send(cache, "cacheExpert_withWeights_", "E6", [1, 2])
        with pytest.raises(batos.AdapterMismatch, match="other weights"):
            batos.send(root["pLLM_obj"], "load_adapter_", "E6", weights=others)
    assert asked == ["E6"] * 3
    synapses.fetch_ahead(["E6"])
    assert synapses.tier("E6") == "warm"


def test_without_a_core_the_models_verbs_say_so(image):
    synapses = batos.SynapticMemory(image, batos.load_settings({}, {}))
    with batos.writing(image) as root:
        root["pLLM_obj"].lora_repository["E0"] = batos.UvmObject(
            version=1, rank=4, alpha=8.0, by_root=False, targets=[], base=None, model_blob=batos.UvmObject(size=1))
    synapses.refresh()
    with batos.reading(image) as root, pytest.raises(batos.CoreOffline, match="no core is loaded"):
        batos.send(root["pLLM_obj"], "set_adapter_", "E0")


def test_without_a_daemon_the_tiers_say_so(image):
    with batos.reading(image) as root, pytest.raises(batos.CoreOffline, match="no daemon"):
        batos.send(root["vram_manifest_obj"], "isLoaded_", "ROBIN")


@pytest.mark.slow
def test_two_hundred_experts_stay_within_the_budgets(tmp_path):
    rng = random.Random(11)
    names = [f"X{n}" for n in range(200)]
    for n, name in enumerate(names):
        stage(tmp_path / "staged", name, seed=n)
    with memory_of(tmp_path, tmp_path / "staged", adapter_slots=8, ram_cache_mb=20.0) as (core, synapses):
        first = {}
        for start in range(0, len(names), 8):            # as many as there are slots
            experts = names[start:start + 8]
            first.update(zip(experts, told(core, *experts, tokens=4), strict=True))
        assert len(set(first.values())) > 100
        for _ in range(60):
            experts = rng.sample(names, rng.randint(1, 8))
            assert told(core, *experts, tokens=4) == [first[name] for name in experts]
            assert synapses.cache.bytes <= 20e6 and len(synapses.slots.used) <= 8
        assert synapses.cache.evictions > 100 and synapses.slots.evictions > 200


# The personas


def test_the_shipped_experts_fit_the_shipped_core():
    """Their base is the core beside them, and their card says so."""
    one = incarnation(ROOT / "lora_adapters")
    base = batos.core_base([(path.name, batos.file_hash(path, "sha256")) for path in batos.core_files(SEED)])
    assert [staged.name for staged in one.staged] == sorted(batos.PILLARS) and one.refused == []
    assert {staged.base for staged in one.staged} == {base} and base in (ROOT / "lora_adapters" / "README.md").read_text()
    assert sum(path.stat().st_size for path in (ROOT / "lora_adapters").rglob("*") if path.is_file()) < 8e6


@pytest.mark.slow
def test_an_expert_is_trained_and_comes_into_an_image(tmp_path, image):
    sys.path.insert(0, str(SEED))
    try:
        import personas
    finally:
        sys.path.remove(str(SEED))
    options = types.SimpleNamespace(minutes=0.1)
    tokenizer = batos.need("transformers", "tests").AutoTokenizer.from_pretrained(SEED).backend_tokenizer
    maker = personas.train.Maker("test", *personas.train.docstring_passages())
    model = personas.adapted(SEED)
    personas.trained("ALFRED", model, tokenizer, maker, options)
    personas.save("ALFRED", model, tmp_path / "staged", personas.base_of(SEED))
    assert bring_in(image, tmp_path / "staged") == {"incarnated": ["ALFRED version 1"], "refused": []}
    assert proxy(image, "ALFRED")["rank"] == personas.RANK
    examples = [personas.example_of("ALFRED", maker) for _ in range(60)]
    assert all(len(batos.facet_value(answer, fields)["quotes"]) == 1 for task, fields, answer in examples if task == "facet")


# A daemon


def wait_for_core(client):
    deadline_s = time.monotonic() + WAIT_S
    while client.call("health")["result"]["core"]["state"] == "loading" and time.monotonic() < deadline_s:
        time.sleep(0.2)

@pytest.mark.slow
def test_a_daemon_has_its_experts(daemon, tmp_path):
    staged = tmp_path / "staged"
    for n, name in enumerate((*batos.PILLARS, "EXTRA")):
        stage(staged, name, seed=n, std=0.001)
    one = daemon("--adapters", str(staged), core=str(SEED))
    assert any("incarnated: ALFRED version 1" in line for line in one.lines)
    with batos.Client(one.endpoint) as client:
        wait_for_core(client)
        rows = {row["expert"]: row for row in client.call("list_experts")["results"]}
        assert {rows[name]["tier"] for name in batos.PILLARS} == {"hot"} and rows["EXTRA"]["tier"] == "cold"
        reply = client.call("activate_expert", expert="extra")
        assert reply["result"]["from"] == "cold" and "EXTRA is hot" in reply["details"]
        assert client.call("send_message", target="vram_manifest_obj", selector="isLoaded:", args=["EXTRA"])["result"] is True
        stage(staged, "EXTRA", seed=77, std=0.001)
        stage(staged, "WRONG", revision="0" * 32)
        told_ = client.call("incarnate")["result"]
        assert told_["incarnated"] == ["EXTRA version 2"] and len(told_["refused"]) == 1
        change = client.call("history", target="pLLM_obj.lora_repository.EXTRA")["results"][0]["change"]
        client.call("undo", change=change)
        with pytest.raises(batos.NotFound, match="EXTRA"):
            client.call("activate_expert", expert="EXTRO")
        state = client.call("get_full_state")["result"]["health"]["synapses"]
        assert state["experts"] == 5 and state["hot"]["slots"] == 8
    assert one.stop() == 0


@pytest.mark.slow
def test_the_sentence_that_answers_is_told_ahead_on_request_as_provisional(daemon):
    one = daemon(core=str(SEED))
    with batos.Client(one.endpoint) as client, batos.Client(one.endpoint) as listener:
        wait_for_core(client)
        client.call("index_document", doc_id="vesper.md", text=(ROOT / "tests" / "data" / "vesper.md").read_text())
        assert "tokens" not in listener.call("subscribe")["result"]["topics"]
        listener.call("unsubscribe")
        heard, events = [], listener.events("tokens")
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How long does the mast run in full darkness?"]}
        cycle = client.call("initiate_cognitive_cycle", mission_brief=brief)["result"]["cycle"]
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            event = next(events)
            if event is not None:
                assert event["event"] == "tokens" and event["cycle"] == cycle and event["provisional"] is True
                heard.append(event["text"])
            elif heard:
                break
        report = next(row for row in client.call("list_cycles")["results"] if row["cycle"] == cycle)
        assert "twelve days" in heard[0] and (report["state"] != "COMPLETE" or heard == [report["answer"]])
    assert one.stop() == 0


@pytest.mark.slow
def test_killed_amid_switching_it_has_all_its_experts_again(daemon, tmp_path):
    staged = tmp_path / "staged"
    names = [f"E{n}" for n in range(12)]
    for n, name in enumerate(names):
        stage(staged, name, seed=n, std=0.001)
    one = daemon("--adapters", str(staged), "--adapter-slots", "5", core=str(SEED))
    with batos.Client(one.endpoint) as client:
        wait_for_core(client)
        acknowledged = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", 7])["change"]
        stop = threading.Event()

        def switch():
            with contextlib.suppress(batos.BatosError), batos.Client(one.endpoint, timeout_s=5) as mine:
                while not stop.is_set():
                    mine.call("activate_expert", expert=random.choice(names))
        switching = threading.Thread(target=switch)
        switching.start()
        time.sleep(1.5)
    one.stop(kill=True)
    stop.set()
    switching.join()
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []
    again = daemon("--adapters", str(staged), core=str(SEED))
    assert not any("incarnated" in line for line in again.lines)
    with batos.Client(again.endpoint) as client:
        wait_for_core(client)
        assert {row["expert"] for row in client.call("list_experts")["results"]} == set(names)
        assert client.call("inspect", target="genesis_obj.n")["result"]["value"] == 7 and acknowledged
        assert client.call("activate_expert", expert="E3")["result"]["from"] == "cold"
    assert again.stop() == 0


def test_adapters_are_taken_from_beside_the_program_and_from_beside_the_image(tmp_path):
    auto = batos.load_settings({"image": str(tmp_path / "mind.fs")}, {})
    beside = pathlib.Path(batos.__file__).resolve().parent
    assert batos.adapter_folders(auto) == [beside / "lora_adapters", tmp_path / "lora_adapters"]
    assert batos.adapter_folders(batos.load_settings({"image": str(beside / "mind.fs")}, {})) == [beside / "lora_adapters"]
    assert batos.adapter_folders(batos.load_settings({"adapters": "none"}, {})) == []


def test_a_reason_that_keeps_several_experts_outside_is_said_once(capsys):
    batos._tell_incarnation({"result": {"refused": ["A: it is for another core", "B: it is for another core", "C: torn"],
                                       "incarnated": ["D"]}})
    assert capsys.readouterr().out.splitlines() == [
        "2 adapters stay outside: A, B: it is for another core", "an adapter stays outside: C: torn", "incarnated: D"]
