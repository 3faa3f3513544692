"""How an expert is trained for a core that writes: by the numbers of the seeds, within so many tokens, and with little memory."""

import types

import pytest

import batos


def training(lengths, **config):
    """Return an ExpertTraining without a core, whose rows have these lengths."""
    one = batos.ExpertTraining.__new__(batos.ExpertTraining)
    told = {name: value for name, value in batos.EXPERT_CONFIG.items() if name != "writes"}
    one.config = told | batos.EXPERT_CONFIG["writes"] | config
    one.corrected = [([0] * length, [1.0] * length) for length in lengths]
    one.replayed = list(one.corrected)
    return one


def test_no_more_is_learnt_than_so_many_tokens():
    assert training([200] * 72)._steps() == 60_000 // (8 * 200)
    assert training([10] * 72)._steps() == 90                # as many as the rows are worth
    assert training([60_000] * 4)._steps() == 1
    assert training([200] * 72, tokens_most=10 ** 9)._steps() == 90
    embedded = training([60_000] * 72)
    del embedded.config["tokens_most"]
    assert embedded._steps() == 90


def test_a_core_that_writes_has_experts_of_the_seeds_numbers():
    made, writes = batos.default_expert(writes=True), batos.EXPERT_CONFIG["writes"]
    assert (made["rank"], made["alpha"], len(made["targets"])) == (16, 32.0, 7)
    assert (writes["lora_dropout"], writes["learning_rate"], writes["rows_a_step"] + writes["replay_a_step"]) == (0.05, 2e-4, 8)
    assert batos.default_expert()["rank"] == 8


@pytest.mark.parametrize("names, rank", [(["model.gguf"], 16), (["core.json", "model.safetensors"], 8)])
def test_what_core_an_image_has_says_how_its_experts_are_made(monkeypatch, names, rank):
    mind = types.SimpleNamespace(model_blob=[types.SimpleNamespace(name=name, sha256="0") for name in names], lora_repository={})
    monkeypatch.setattr(batos, "mind_of", lambda root: mind)
    assert batos._expert_told(None, "BRICK")["expert"]["rank"] == rank


def small_llama():
    """Return (a small Llama with a LoRA, what it is asked)."""
    import peft
    import torch
    import transformers

    torch.manual_seed(7)
    sizes = transformers.LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                                     num_attention_heads=4, tie_word_embeddings=False)
    base = transformers.LlamaForCausalLM(sizes)
    how = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, how).train(), torch.arange(20)[None]


def learnt(model, ids):
    """Return (loss, the sum of each gradient) of one step."""
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), [round(one.grad.sum().item(), 4) for one in model.parameters() if one.requires_grad]


def in_memory(model):
    return sum(one.nbytes for one in model.parameters() if one.device.type != "meta")


@pytest.mark.slow
def test_weights_on_the_disk_learn_the_same_with_less_memory(tmp_path):
    plain, ids = small_llama()
    loss, gradients = learnt(plain, ids)
    spare, ids = small_llama()
    batos._offload_base(spare, tmp_path / "offload")
    before = in_memory(spare)
    told = learnt(spare, ids)
    assert told[0] == pytest.approx(loss, abs=1e-5) and told[1] == pytest.approx(gradients, abs=1e-3)
    assert before == in_memory(spare) < in_memory(plain) / 10


# What a device has room for


WANTED = batos.DeviceRoom(8, 16)


@pytest.mark.parametrize("account, room", [
    ({"budget_mb": 6900, "base_mb": 1000, "slot_mb": 10, "row_mb": 100}, (8, 16)),
    ({"budget_mb": 1400, "base_mb": 1000, "slot_mb": 10, "row_mb": 100}, (8, 3)),       # rows go first
    ({"budget_mb": 1175, "base_mb": 1000, "slot_mb": 10, "row_mb": 100}, (7, 1)),       # then slots, to the least
    ({"budget_mb": 6900, "base_mb": 1000, "slot_mb": 10, "row_mb": 500}, (8, 4)),       # the KV cache has a bound of its own
    ({"budget_mb": 6900, "base_mb": 100, "slot_mb": 10, "row_mb": 2500}, (8, 1))])
def test_slots_and_rows_are_as_many_as_fit(account, room):
    found = batos._room_on_device(account, WANTED, 5)
    assert found == room
    taken = account["base_mb"] + found.slots * account["slot_mb"] + found.rows * account["row_mb"]
    assert taken <= account["budget_mb"]


def test_a_core_that_has_no_room_for_a_row_is_refused_by_name():
    account = {"budget_mb": 6900, "base_mb": 6800, "slot_mb": 10, "row_mb": 100}
    with pytest.raises(batos.OutOfMemory, match="needs 6,950 MB .* vram_mb is 6,900"):
        batos._room_on_device(account, WANTED, 5)


@pytest.mark.slow
def test_a_core_on_a_card_gets_slots_and_rows_by_the_budget(monkeypatch):
    import torch

    model, _ = small_llama()
    told = types.SimpleNamespace(device=torch.device("cuda"), config=model.config, named_parameters=model.named_parameters,
                                 named_modules=model.named_modules, get_input_embeddings=model.get_input_embeddings)
    loaded = types.SimpleNamespace(model=told, positions=2048)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10 ** 9))
    assert batos._budget_of_device(loaded, 6900) == 6900 and batos._budget_of_device(loaded, 0) == 80_000
    account = batos._account_before(loaded, 16, frozenset({"q_proj"}), 6900)
    assert account["row_mb"] == 2 * 4 * 4 * 16 * 4 * 2048 / 1e6      # keys and values, layers, heads, their width, bytes, tokens
    assert account["slot_mb"] == pytest.approx(4 * 16 * 128 * 4 / 1e6)
    memory = batos.SynapticMemory.__new__(batos.SynapticMemory)
    memory.experts, memory.slots, memory.unfit = {}, None, {}
    memory.settings = types.SimpleNamespace(adapter_rank=16, adapter_slots=8, vram_mb=account["base_mb"] + 3 * account["row_mb"])
    memory.fit(loaded)
    assert memory.rows_fit == 3
