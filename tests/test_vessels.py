"""Another program for the image: how it is seen in the channel and told of, what is refused, what the image knows of it."""

import asyncio
import os
import pathlib
import shutil
import types

import newer
import pytest

import batos

ROOT = pathlib.Path(batos.__file__).resolve().parent
ANOTHER = "# another comment\n"


def channel_with(folder, more=ANOTHER):
    """Make a channel that holds this batos.py with more at its end; returns its path."""
    channel = folder / "channel"
    channel.mkdir(mode=0o755)
    (channel / "batos.py").write_text((ROOT / "batos.py").read_text("utf-8") + more, "utf-8")
    (channel / "batos.py").chmod(0o644)
    return channel


@pytest.fixture(scope="module")
def own():
    return batos.read_vessel(ROOT)


@pytest.fixture
def channel(tmp_path):
    return channel_with(tmp_path)


def refusal(channel, own):
    with pytest.raises(batos.UpgradeRefused) as told:
        batos.channel_vessel(channel, own)
    return told.value.fields["rule"]


def test_a_vessel_is_known_by_all_its_files_and_nothing_else(tmp_path, own):
    assert {"batos.py", "requirements.txt", "morphic_ui.py", "seed_core/core.json"} <= own.files.keys()
    assert not [name for name in own.files if "__pycache__" in name or name.startswith("tests")]
    copy = tmp_path / "copy"
    for name, file in own.files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, copy / name)
    (copy / "seed_core" / "__pycache__").mkdir()
    (copy / "seed_core" / "__pycache__" / "x.pyc").touch()
    (copy / "beside").touch()
    assert batos.read_vessel(copy).sha256 == own.sha256
    (copy / "README.md").write_text("another")
    assert batos.read_vessel(copy).sha256 != own.sha256


def test_what_a_channel_does_not_hold_stays_as_it_is(channel, own):
    offered = batos.channel_vessel(channel, own)
    assert offered.sha256 != own.sha256 and offered.files.keys() == own.files.keys()
    assert offered.version_line == f'__version__ = "{batos.__version__}"'
    told = batos._told_difference(own, offered)
    assert told == {"added": 1, "removed": 0, "changed": 1, "files": ["batos.py"]}
    (channel / "seed_core").mkdir(mode=0o755)
    (channel / "seed_core" / "core.json").write_text("{}")
    offered = batos.channel_vessel(channel, own)         # a part that is there is there as a whole
    assert [name for name in offered.files if name.startswith("seed_core")] == ["seed_core/core.json"]
    (channel / "batos.py").unlink()
    assert batos.channel_vessel(channel, own) is None


def share_file(channel):
    (channel / "batos.py").chmod(0o666)


def link_program(channel):
    (channel / "batos.py").rename(channel.parent / "elsewhere.py")
    (channel / "batos.py").symlink_to(channel.parent / "elsewhere.py")


def link_channel(channel):
    channel.rename(channel.parent / "elsewhere")
    channel.symlink_to(channel.parent / "elsewhere")


def link_within(channel):
    (channel / "seed_core").mkdir()
    (channel / "seed_core" / "core.json").symlink_to("/etc/hostname")


def put_a_pipe(channel):
    (channel / "batos.py").unlink()
    os.mkfifo(channel / "batos.py", 0o600)


def share_within(channel):
    (channel / "lora_adapters").mkdir()
    (channel / "lora_adapters").chmod(0o777)


@pytest.mark.parametrize("rule, change", [
    ("writable", lambda channel: channel.chmod(0o777)), ("writable", share_file), ("writable", share_within),
    ("writable", lambda channel: channel.parent.chmod(0o775)), ("link", link_program), ("link", link_channel),
    ("link", link_within), ("kind", put_a_pipe)])
def test_what_others_could_change_is_refused_by_name(channel, own, rule, change):
    change(channel)
    assert refusal(channel, own) == rule
    seen = batos.Channel(str(channel), own)
    assert seen.look() and seen.offer["rule"] == rule and "sha256" not in seen.offer
    assert "is not taken" in batos.told_offer(seen.offer)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["", "batos.py"])
def test_what_is_anothers_is_refused(channel, own, name):
    os.chown(channel / name, 12345, 12345)
    assert refusal(channel, own) == "owner"


def test_too_much_is_refused(channel, own, monkeypatch):
    monkeypatch.setattr(batos, "_VESSEL_BYTES_MOST", 100)
    assert refusal(channel, own) == "size"
    monkeypatch.setattr(batos, "_VESSEL_FILES_MOST", 0)
    assert refusal(channel, own) == "size"


def test_a_daemon_knows_itself_without_what_is_too_large_or_not_to_be_read(tmp_path, own, monkeypatch):
    (tmp_path / "lora_adapters").mkdir()
    (tmp_path / "lora_adapters" / "large").write_bytes(bytes(5000))
    (tmp_path / "README.md").symlink_to("README.md")     # leads nowhere
    (tmp_path / "renamed.py").touch()
    monkeypatch.setattr(batos, "_VESSEL_BYTES_MOST", 1000)
    vessel = batos.read_vessel(tmp_path)
    assert vessel.files == {} and vessel.version_line == "no batos.py is there"


def test_an_order_is_its_owners_alone_whatever_the_umask_is(tmp_path):
    image = str(tmp_path / "image.fs")
    batos.make_folder(batos.vessels_home(image))
    before = os.umask(0)
    try:
        batos.write_order(image, batos.Order({}, {}, False))
    finally:
        os.umask(before)
    assert (batos.vessels_home(image) / "order").stat().st_mode & 0o777 == 0o600


def test_only_what_is_new_is_told(channel, own):
    seen = batos.Channel(str(channel), own)
    assert seen.look() and not seen.look()
    first = seen.offer["sha256"]
    (channel / "batos.py").write_text((ROOT / "batos.py").read_text() + "# a third\n# program\n")
    assert seen.look() and seen.offer["sha256"] != first and seen.offer["added"] == 2
    shutil.copyfile(ROOT / "batos.py", channel / "batos.py")
    assert not seen.look() and seen.offer is None         # what runs already
    (channel / "batos.py").write_bytes(b"\xff\0 no program at all")
    assert seen.look() and seen.offer["version_line"] == "no line of it tells a version"
    shutil.rmtree(channel)
    assert not seen.look() and seen.offer is None
    assert not batos.Channel("", own).look()


def test_an_offer_is_told_to_who_listens_and_written_to_the_log(channel, own, caplog):
    told, seen = [], batos.Channel(str(channel), own)
    publish = lambda topic, fields: told.append((topic, fields))
    uvm = types.SimpleNamespace(vessel={}, wire=types.SimpleNamespace(publish=publish))

    async def look():
        looking = asyncio.create_task(batos._look_at_channel(uvm, seen, types.SimpleNamespace(told=dict)))
        while not told:
            await asyncio.sleep(0.01)
        looking.cancel()
    asyncio.run(look())
    assert told == [("upgrade", {"offer": seen.offer})] and uvm.vessel["offer"]["added"] == 1
    assert f"upgrade {seen.offer['sha256']}" in caplog.text
    assert batos._EVENT_TOLD["upgrade"](told[0][1]) in caplog.text


def test_a_daemon_tells_what_is_offered_and_runs_nothing_of_it(channel, daemon, tmp_path, own, capsys, monkeypatch):
    (channel / "batos.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + (channel / "batos.py").read_text())
    running = daemon("--upgrade-channel", str(channel))
    monkeypatch.chdir(tmp_path)
    with batos.Client(running.endpoint) as client:
        while not (offer := client.call("health")["result"]["vessel"]["offer"]):
            pass
        assert offer["added"] == 2 and offer["files"] == ["batos.py"]
        assert client.call("health")["result"]["vessel"]["sha256"] == own.sha256
        assert any(offer["sha256"] in line for line in batos._drawn(batos._looked(client))["Daemon"])
    assert batos.main(["upgrade", "--upgrade-channel", str(channel)]) == 0
    told = capsys.readouterr().out
    assert f"serves   {own.sha256}" in told and f"upgrade {offer['sha256']}" in told and "+2 -0 lines in 1 file" in told
    assert not (tmp_path / "ran").exists()


def test_without_a_daemon_or_a_channel_it_is_told_so(tmp_path, capsys, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    assert batos.main(["upgrade", "--list"]) == 0
    told = capsys.readouterr().out
    assert f"this is  {own.sha256}" in told and "no channel is looked at" in told
    (tmp_path / "empty").mkdir()
    assert batos.main(["upgrade", "--upgrade-channel", "empty"]) == 0
    assert "offers no other program" in capsys.readouterr().out


def noted(image):
    with batos.reading(image) as root:
        vessel = batos.own(root["vessel_obj"])
        return vessel["current"], vessel["history"]


def test_the_image_knows_by_which_program_it_is_served_and_by_which_it_was(tmp_path, own, monkeypatch):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    assert noted(image) == ({}, [])
    assert batos.note_vessel(image, own) and not batos.note_vessel(image, own)
    current, history = noted(image)
    assert current["sha256"] == own.sha256 and current["packages"]["ZODB"] and len(history) == 1
    monkeypatch.setattr(batos, "_VESSELS_NOTED", 3)
    for number in range(5):
        batos.note_vessel(image, own._replace(sha256=str(number)))
    assert [row["sha256"] for row in noted(image)[1]] == ["2", "3", "4"]
    image.close()
    assert batos.check_image(str(tmp_path / "image.fs"), deep=True)["faults"] == []


def test_an_image_of_before_comes_to_know_it_and_no_message_changes_it(tmp_path, daemon, own):
    newer.unpacked("856fea4", tmp_path)
    running = daemon()
    with batos.Client(running.endpoint) as client:
        slots = client.call("inspect", target="vessel_obj")["result"]["slots"]
        assert slots["current"]["value"]["sha256"] == own.sha256
        with pytest.raises(batos.Protected, match="upgrade"):
            client.call("send_message", target="vessel_obj", selector="setSlot_value_", args=["current", {}])
    assert running.stop() == 0
