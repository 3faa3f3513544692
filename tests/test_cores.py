"""Larger cores: what is offered, and one that comes from a hub: said first, downloaded, packed, kept in the image."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]
SEED = ROOT / "seed_core"
WAIT_S = 300


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has one small Llama with random weights."""
    torch, transformers = batos.need("torch", "tests"), batos.need("transformers", "tests")
    torch.manual_seed(1)
    sizes = {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 4096}
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SEED / name, folder)
    process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "hubbed.py"), str(folder)], stdout=subprocess.PIPE,
                               text=True)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{process.stdout.readline().strip()}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def ask(one):
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="vesper.md", text=(ROOT / "tests" / "data" / "vesper.md").read_text())
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How long does the mast run in full darkness?"]}
        return client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True, timeout_s=WAIT_S)["result"]


@pytest.mark.slow
def test_a_model_of_the_hub_comes_into_the_image_and_stays(daemon, hub, tmp_path):
    one = daemon(core="org/tiny")
    told = "".join(one.lines)
    assert "are downloaded once" in told and "licence apache-2.0" in told and "packed into four bits" in told
    report = ask(one)
    assert report["state"] == "COMPLETE" or report["reason"]["code"] == "GateRefused"         # its weights are of chance
    assert one.stop() == 0
    hub.kill()                                           # the next start reads nothing but the image
    shutil.rmtree(tmp_path / "hf")
    again = daemon(core="org/tiny")
    assert "downloaded" not in "".join(again.lines)
    with batos.Client(again.endpoint) as client:
        assert client.call("inspect", target="pLLM_obj.model_id")["result"]["value"] == "org/tiny"
    assert again.stop() == 0


def refused(tmp_path, name):
    env = os.environ | {"BATOS_EMBEDDER": "none"}
    done = subprocess.run([sys.executable, str(ROOT / "batos.py"), "--core", name, "--endpoint", "tcp://127.0.0.1:0"], text=True,
                          cwd=tmp_path, capture_output=True, timeout=WAIT_S, env=env)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_trouble_with_the_hub_is_one_sentence(hub, tmp_path):
    assert "accept its licence at https://huggingface.co/org/gated, then give a token" in refused(tmp_path, "org/gated")
    assert "there is no such model" in refused(tmp_path, "org/nothing")
    hub.kill()
    hub.wait()
    assert "the hub cannot be reached" in refused(tmp_path, "org/tiny")
    assert not list(tmp_path.glob("batos-core-*"))


def test_a_disk_that_is_too_small_is_told_before_the_download(monkeypatch, tmp_path):
    monkeypatch.setattr(batos, "_hub_size", lambda name: (16 * 10**9, "its own"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**9))
    said = []
    with pytest.raises(batos.ConfigError, match="24.0 GB of disk, and 1.0 GB are free"):
        batos._hub_folder("org/big", tmp_path, said.append)
    assert "16.00 GB are downloaded" in said[0]


def test_offers_are_judged_by_what_the_machine_has():
    eight, small = batos.OFFERS[-1], batos.OFFERS[0]
    assert eight.name == batos.HUB_CORE
    assert batos.offer_note(eight, 24.0, 16.0) == "well, on the GPU" and batos.offer_note(eight, 0, 64.0) == "slowly, on the CPU"
    assert batos.offer_note(eight, 6.0, 8.0).startswith("not here: it wants 7.7 GB of a GPU")
    assert batos.offer_note(small, 0.0, 4.0) == "well, on the CPU"


def test_the_list_of_cores(capsys, monkeypatch):
    monkeypatch.setattr(batos, "gpu_gb", lambda: 24.0)
    assert batos.main(["cores"]) == 0
    shown = capsys.readouterr().out
    assert "a GPU of 24 GB" in shown and all(offer.name in shown and offer.licence in shown for offer in batos.OFFERS)
    assert batos.main(["cores", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["here"] for row in rows} == {"well, on the GPU"} and rows[0]["command"].startswith("python batos.py --core ")


def test_gpus_are_found_without_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert batos.gpu_gb() == 0.0
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 24576\necho 8192\n")
    tool.chmod(0o755)
    assert batos.gpu_gb() == 24.0
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert batos.gpu_gb() == 0.0


def test_auto_offers_the_seeds_model_where_a_gpu_takes_it(monkeypatch, tmp_path, capsys):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    assert batos._chosen_core("auto", image) == "auto" and capsys.readouterr().out == ""
    monkeypatch.setattr(batos, "gpu_gb", lambda: 24.0)
    assert batos._chosen_core("auto", image) == "auto" and batos.HUB_CORE in capsys.readouterr().out     # nobody can be asked
    for typed, chosen in (("y\n", batos.HUB_CORE), ("\n", "auto"), ("n\n", "auto")):
        terminal = types.SimpleNamespace(isatty=lambda: True, readline=lambda typed=typed: typed)
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert batos._chosen_core("auto", image) == chosen
    assert batos._chosen_core("none", image) == "none"
    image.close()
