"""An image that a storage server keeps: served, killed at both ends, refused by name where something is not as it must be."""

import contextlib
import json
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import threading

import engines
import forks
import pytest
import transaction
import vessels
import ZODB.FileStorage

import batos

NOTE = "Turn the brass valve until the needle stands at zero."


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """What is kept beside a daemon stays in the test's folder."""
    monkeypatch.chdir(tmp_path)


def daemon_on(daemon, uri, *options):
    return daemon("--image", uri, "--lease-s", "1", *options)


def faults_of(path):
    return batos.check_image(path, deep=True)["faults"]


def test_what_a_daemon_stores_is_in_the_servers_file(daemon, server, tmp_path):
    kept = server()
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        told = client.call("index_document", doc_id="valve.md", text=NOTE)
        found = client.call("search_memory", query="brass valve")["results"][0]["chunk"]
        health = client.call("health")["result"]
    assert told["change"] and found["doc_id"] == "valve.md"
    assert health["engine"]["kind"] == "zeo" and health["engine"]["durable_blobs"] is True
    assert one.stop() == 0 and kept.stop() == 0
    assert faults_of(tmp_path / "kept.fs") == []
    assert pathlib.Path(tmp_path / "kept.fs.seals").exists()
    again = daemon("--image", str(tmp_path / "kept.fs"))
    with batos.Client(again.endpoint) as client:
        assert client.call("search_memory", query="brass valve")["results"]


def test_a_socket_of_the_file_system_serves_as_well(daemon, server, tmp_path):
    kept = server("kept.fs", str(tmp_path / "socket"))
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        assert client.call("index_document", doc_id="valve.md", text=NOTE)["change"]
    with pytest.raises(AssertionError, match="listens on .* already"):
        server("other.fs", str(tmp_path / "socket"))


def test_a_foreign_server_is_taken_and_told_of(daemon, server):
    kept = server(make=engines.foreign)
    one = daemon_on(daemon, kept.uri)
    assert any("durable_blobs: false" in line for line in one.lines)
    with batos.Client(one.endpoint) as client:
        assert client.call("health")["result"]["engine"]["durable_blobs"] is False
        assert "durable_blobs" not in client.call("get_full_state")
        assert client.call("inspect", target="pLLM_obj.lora_repository.ROBIN.model_blob")["durable_blobs"] is False


# Refused by name


def refused(words, capsys):
    assert batos.main(["serve", "--endpoint", "tcp://127.0.0.1:0", "--core", "none", *words]) == 1
    return capsys.readouterr().err


def test_no_server_and_no_zeo_server_are_told_apart(capsys, tmp_path):
    port = engines.free_port()
    told = refused(["--image", f"zeo://127.0.0.1:{port}"], capsys)
    assert "no storage server answers" in told and "python batos.py storage FILE --listen" in told
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=answer_with, args=(other, b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True).start()
        told = refused(["--image", f"zeo://127.0.0.1:{other.getsockname()[1]}"], capsys)
    assert "is no ZEO server of protocol 5" in told
    assert "no storage server answers" in refused(["--image", f"zeo://{tmp_path}/nothing"], capsys)


def answer_with(listening, data):
    one, _ = listening.accept()
    with one:
        one.sendall(data)


@pytest.mark.parametrize("uri, told", [
    ("zeo://192.0.2.1:9991", "by TLS alone"), ("zeo://127.0.0.1:1?tls_cert=a", "by TLS alone"),
    ("zeo://127.0.0.1:1?wait=no", "'wait' is no option"), ("zeo://127.0.0.1:1?wait_timeout=soon", "whole number of seconds"),
    ("zeo://127.0.0.1:99999", "no address of a storage server"), ("zoe://127.0.0.1:1", "zeo://HOST:PORT")])
def test_a_wrong_address_is_refused_by_what_is_wrong_with_it(capsys, uri, told, tmp_path):
    assert told in refused(["--image", uri], capsys)


@pytest.mark.parametrize("words, told", [
    (["kept.fs", "--listen", "0.0.0.0:0"], "takes TLS"), (["kept.fs", "--listen", "127.0.0.1:0", "--tls-cert", "a"], "takes TLS"),
    (["zeo://127.0.0.1:1"], "gives out a data file"), (["kept.fs", "--listen", "nowhere/"], "no address"),
    (["kept.fs", "--listen", "203.0.113.1:0", "--tls-cert", "no", "--tls-peers", "no"], "openssl req")])
def test_a_storage_server_is_refused_by_what_is_wrong_with_it(capsys, words, told, tmp_path):
    assert batos.main(["storage", *words]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "kept.fs").exists()


def test_a_port_that_is_taken_is_told_and_the_file_let_go(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert batos.main(["storage", "kept.fs", "--listen", f"127.0.0.1:{other.getsockname()[1]}"]) == 1
    assert "name another --listen" in capsys.readouterr().err
    batos.Image.open("kept.fs").close()


def test_a_server_that_is_gone_amid_a_check_is_told_by_name(server, capsys, monkeypatch):
    kept = server()
    image = batos.Image.open(kept.uri)
    batos.genesis(image)
    image.close()
    monkeypatch.setenv("BATOS_IMAGE", f"{kept.uri}?wait_timeout=1")
    oids = batos._oids_of
    monkeypatch.setattr(batos, "_oids_of", lambda storage: [oids(storage), kept.stop(kill=True)][0])
    assert batos.main(["check", "--deep"]) == 1
    assert "does not answer" in "".join(capsys.readouterr())


def test_a_server_with_less_than_was_read_from_it_is_not_believed(daemon, server, tmp_path):
    port = engines.free_port()
    kept = server("kept.fs", f"127.0.0.1:{port}")
    one = daemon_on(daemon, f"{kept.uri}?wait_timeout=1")
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
        kept.stop()
        server("other.fs", f"127.0.0.1:{port}")              # an image that is not the one
        for _ in range(3):
            with pytest.raises(batos.StorageOffline):
                client.call("index_document", doc_id="late.md", text="A late note of copper.")
        assert client.call("search_memory", query="brass valve")["results"]


def test_a_storage_that_the_server_has_not_is_told(server):
    kept = server()
    with pytest.raises(batos.StorageOffline, match="no storage named 'other'"):
        batos.Image.open(f"{kept.uri}?storage=other&wait_timeout=2")


def test_by_tls_only_the_named_certificates_are_let_in(server, tmp_path):
    engines.certificates(tmp_path, "one", "two", "stranger")
    kept = server("kept.fs", "127.0.0.1:0", "--tls-cert", "one.own", "--tls-peers", "two.pem")
    with pytest.raises(batos.ImageError, match="wants TLS"):
        batos.Image.open(kept.uri)

    def uri(own, peers):
        return f"{kept.uri}?tls_cert={tmp_path}/{own}.own&tls_peers={tmp_path}/{peers}.pem&blob_dir={tmp_path}/cache"
    with pytest.raises(batos.ImageError, match="do not agree on TLS"):
        batos.Image.open(uri("stranger", "one"))
    with pytest.raises(batos.ImageError, match="do not agree on TLS"):
        batos.Image.open(uri("two", "stranger"))
    (tmp_path / "two.own").chmod(0o644)
    with pytest.raises(batos.ConfigError, match="chmod"):
        batos.Image.open(uri("two", "one"))
    (tmp_path / "two.own").chmod(0o600)
    batos.Image.open(uri("two", "one")).close()


# Killed, restarted, full


def test_a_server_that_is_gone_is_told_of_and_gone_on_with_once_it_is_back(daemon, server, tmp_path):
    port = engines.free_port()
    kept = server("kept.fs", f"127.0.0.1:{port}")
    one = daemon_on(daemon, f"{kept.uri}?wait_timeout=1")
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
        assert kept.stop() == 0
        with pytest.raises(batos.StorageOffline, match="does not answer"):
            client.call("index_document", doc_id="late.md", text="A late note of copper.")
        server("kept.fs", f"127.0.0.1:{port}")
        while True:
            try:
                told = client.call("index_document", doc_id="late.md", text="A late note of copper.")
                break
            except batos.StorageOffline:
                pass
        assert told["change"] and client.call("search_memory", query="copper")["results"]
    assert one.stop() == 0


def writing_until_lost(endpoint, name, acknowledged):
    """Store documents until nobody answers; note each that was acknowledged."""
    number = 0
    with batos.Client(endpoint, timeout_s=20.0) as client:
        while True:
            doc_id, number = f"{name}-{number}.md", number + 1
            try:
                client.call("index_document", doc_id=doc_id, text=f"{NOTE} {doc_id}")
            except batos.BatosError:
                return
            acknowledged.append(doc_id)


def under_load(endpoint, at_least, then):
    """Have three clients write; once so many were acknowledged do something. Returns what was acknowledged."""
    acknowledged = []
    writers = [threading.Thread(target=writing_until_lost, args=(endpoint, name, acknowledged)) for name in "abc"]
    for one in writers:
        one.start()
    while len(acknowledged) < at_least:
        pass
    then()
    for one in writers:
        one.join()
    return acknowledged


def documents_at(endpoint):
    names, after = set(), ""
    with batos.Client(endpoint) as client:
        while rows := client.call("list_documents", after=after, limit=100)["results"]:
            names |= {row["doc_id"] for row in rows}
            after = rows[-1]["doc_id"]
    return names


@pytest.mark.slow
@pytest.mark.parametrize("who", ["daemon", "server"])
def test_nothing_acknowledged_is_lost_where_either_end_is_killed_amid_writes(daemon, server, tmp_path, who):
    everything = []
    for turn in range(3):
        kept = server()
        one = daemon_on(daemon, f"{kept.uri}?wait_timeout=1")
        killed = one if who == "daemon" else kept
        everything += under_load(one.endpoint, 15 + 7 * turn, lambda killed=killed: killed.stop(kill=True))
        one.stop(kill=True)
        kept.stop(kill=True)
        kept = server()
        again = daemon_on(daemon, kept.uri)
        assert set(everything) <= documents_at(again.endpoint)
        assert again.stop() == 0 and kept.stop() == 0
    assert faults_of(tmp_path / "kept.fs") == []


# Two daemons


def test_a_second_daemon_is_refused_while_the_first_is_alive(daemon, server, tmp_path, capsys):
    kept = server()
    one = daemon_on(daemon, kept.uri)
    told = refused(["--image", kept.uri, "--lease-s", "60"], capsys)
    assert "is written by another daemon" in told and one.endpoint in told and "--stand-by" in told
    with batos.Client(one.endpoint) as client:
        assert client.call("index_document", doc_id="valve.md", text=NOTE)["change"]
        assert client.call("health")["result"]["writer"]["epoch"] == 1
    one.stop(kill=True)
    two = daemon_on(daemon, kept.uri, "--lease-s", "600")    # that it is dead is seen here, so nothing is waited for
    with batos.Client(two.endpoint) as client:
        assert client.call("health")["result"]["writer"]["epoch"] == 2
    assert two.stop() == 0
    three = daemon_on(daemon, kept.uri, "--lease-s", "600")
    with batos.Client(three.endpoint) as client:
        assert client.call("search_memory", query="brass valve")["results"]


class Ended(Exception):
    """Stands for the end of a process."""


def raise_ended(error):
    raise Ended(str(error))


def test_a_commit_of_a_former_writer_fails_in_whatever_transaction_it_comes(server, tmp_path):
    kept = server()
    uri = f"{kept.uri}?blob_dir={tmp_path}/cache"
    old, new = batos.Image.open(uri), batos.Image.open(uri)
    batos.genesis(old)
    claimed = batos.claim_image(old, "tcp://127.0.0.1:1", "", 600.0, print, end=raise_ended)
    unit = batos.Unit(old.db)
    unit.manager.begin()
    batos.set_slot(unit.root["genesis_obj"], "name", "mine")
    new.storage.ping()                                       # what was committed has come here then
    batos._claimed(new, "tcp://127.0.0.1:2", "", raise_ended)
    with pytest.raises(transaction.interfaces.TransientError):      # it has read the epoch before, and the engine has not
        unit.manager.commit()
    unit.manager.abort()
    unit.close()
    old.storage.ping()
    with pytest.raises(Ended, match="tcp://127.0.0.1:2"), batos.writing(old) as root:
        batos.set_slot(root["genesis_obj"], "name", "mine")
    with batos.reading(new) as root:
        assert root["genesis_obj"].name != "mine"
    assert old.db.fence is claimed.fence
    claimed._ended.set()
    old.close()
    new.close()


def test_who_looks_counts_by_its_own_clock_and_anew_where_it_could_not_look(server, tmp_path, monkeypatch):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    clock = [100.0]
    monkeypatch.setattr(batos.time, "monotonic", lambda: clock[0])
    watch = batos.WriterWatch(image, 15.0)
    assert watch.look()
    batos._claimed(image, "tcp://127.0.0.1:1", "", raise_ended)
    assert not watch.look()
    clock[0] += 14.0
    assert not watch.look()
    clock[0] += 2.0
    assert watch.look()
    with batos.writing(image) as root:
        root["writer_beat"]["count"] += 1
    assert not watch.look() and watch.beats == 2
    clock[0] += 20.0
    with monkeypatch.context() as amid:
        amid.setattr(watch, "_read", lambda: raise_ended("offline"))
        with pytest.raises(Ended):
            watch.look()
    assert not watch.look()
    clock[0] += 16.0
    assert watch.look()
    with batos.writing(image) as root:
        root["writer_beat"].update(count=9, ended=True)
    assert watch.look()
    image.close()


# Backups and packs


def test_the_pack_that_is_due_at_a_new_file_finds_nothing_to_do(server, tmp_path):
    kept = server("kept.fs", "127.0.0.1:0")
    upkeep = tmp_path / "kept.fs.upkeep"
    vessels.until(lambda: upkeep.exists() and "pack" in json.loads(upkeep.read_text()))
    assert json.loads(upkeep.read_text())["pack"]["ok"] and kept.stop() == 0


def test_packs_and_backups_are_made_on_the_servers_side(daemon, server, tmp_path):
    kept = server("kept.fs", "127.0.0.1:0", "--backup-dir", "backups")
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        for number in range(5):
            client.call("index_document", doc_id="valve.md", text=f"{NOTE} {number}")
        told = client.call("backup")
        assert "read back" in told["details"] and client.call("pack", days=0)["result"]["after_mb"] > 0
        with pytest.raises(batos.NotHere, match="--backup-dir"):
            client.call("backup", folder="/elsewhere")
        assert client.call("search_memory", query="brass valve")["results"]
    assert one.stop() == 0 and kept.stop() == 0
    assert faults_of(tmp_path / "kept.fs") == []
    restored = batos.restore_image(tmp_path / "backups", tmp_path / "restored.fs")
    assert restored["faults"] == [] and json.dumps(restored)


# What is asked of an image of another engine: the table


@pytest.mark.parametrize("what, words", [
    ("restore", ["restore", "backups"]), ("recover", ["recover", "new.fs"]), ("check --mend", ["check", "--mend"]),
    ("upgrade", ["upgrade", "0" * 64])])
@pytest.mark.parametrize("uri", ["zeo://127.0.0.1:9991", "postgres://me:secret@127.0.0.1/mind"])
def test_what_an_engine_does_by_a_command_of_its_own_is_told_by_that(capsys, monkeypatch, what, words, uri):
    monkeypatch.setenv("BATOS_IMAGE", uri)
    assert batos.main(words) == 1
    told = capsys.readouterr().err
    kind = uri.partition("://")[0]
    assert f"{what} is not done from here" in told and "secret" not in told
    assert " ".join(batos._ASKED_OF_ENGINES[what][kind].told.split()) in " ".join(told.split())


def test_the_help_has_the_table(capsys):
    assert batos.main(["help", "engines"]) == 0
    told = capsys.readouterr().out
    for what in ("check", "pack", "backup", "recover", "upgrade", "forget"):
        for engine in ("zeo", "postgres"):
            assert re.search(rf"^{what}, {engine} +(works|NotHere): ", told, re.M)


def test_an_image_is_checked_while_a_daemon_serves_it_and_damage_is_found(daemon, server, tmp_path, capsys, monkeypatch):
    kept = server()
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
    monkeypatch.setenv("BATOS_IMAGE", kept.uri)
    assert batos.main(["check", "--deep"]) == 0
    assert "no fault was found" in capsys.readouterr().out
    blob = max(tmp_path.glob("kept.fs.blob/**/*.blob"), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    blob.write_bytes(b"something else")
    shutil.rmtree(tmp_path / "batos.blobs")
    assert batos.main(["check", "--deep"]) == 1
    assert "was altered" in capsys.readouterr().out


def test_a_foreign_server_packs_and_makes_no_backups_here(daemon, server):
    kept = server(make=engines.foreign)
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        for number in range(5):
            client.call("index_document", doc_id="valve.md", text=f"{NOTE} {number}")
        told = client.call("pack", days=0)["result"]
        assert told["after_mb"] < told["before_mb"]
        with pytest.raises(batos.NotHere, match="repozo"):
            client.call("backup")
        assert "FILE.old" in client.call("forget", doc_id="valve.md")["details"]
    assert one.stop() == 0


def test_where_the_images_version_changes_our_server_makes_a_backup_before(server, tmp_path, monkeypatch):
    kept = server("kept.fs", "127.0.0.1:0", "--backup-dir", "backups")
    image, lines = batos.Image.open(kept.uri), []
    batos.genesis(image)
    with batos.writing(image) as root:
        root["image_version"] = batos.IMAGE_VERSION - 1
    monkeypatch.setitem(batos.UPGRADES, batos.IMAGE_VERSION, lambda root: None)
    batos.upgrade_image(image, "nowhere", lines.append)
    with batos.reading(image) as root:
        assert root["image_version"] == batos.IMAGE_VERSION
    image.close()
    backup, = batos.read_backups(tmp_path / "backups")[0]
    assert backup.after is None and backup.name in lines[0] and not pathlib.Path("nowhere").exists()


def test_what_is_forgotten_leaves_no_byte_on_either_side(daemon, server, tmp_path):
    kept = server("kept.fs", "127.0.0.1:0", "--backup-dir", "backups")
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
        secret = "The combination is zibeline quokka."
        client.call("index_document", doc_id="secret.md", text=secret)
        told = client.call("forget", doc_id="secret.md")["details"]
        assert "backups of the server's machine may hold it still" in told
        assert not client.call("search_memory", query="zibeline")["results"]
    assert one.stop() == 0 and kept.stop() == 0
    found = [path for path in tmp_path.rglob("*") if path.is_file() and b"zibeline" in path.read_bytes()]
    assert found == []


# Moved


def filled(daemon, *options):
    """Fill an image with documents, a correction and experts; returns nothing once its daemon has ended."""
    one = daemon(*options)
    with batos.Client(one.endpoint) as client:
        for number in range(6):
            client.call("index_document", doc_id=f"valve-{number % 4}.md", text=f"{NOTE} It is number {number}.")
        client.call("unindex_document", doc_id="valve-3.md")
    assert one.stop() == 0


def transactions_of(path):
    with contextlib.closing(ZODB.FileStorage.FileIterator(str(path))) as rows:
        return [(one.tid, {record.oid: batos.inflated(record.data) for record in one}) for one in rows]


def blobs_of(path):
    return {file.name: file.read_bytes() for file in pathlib.Path(f"{path}.blob").rglob("0x*.blob")}


@pytest.mark.parametrize("make", [engines.serving, engines.foreign])
def test_an_image_is_moved_to_a_server_and_back_with_its_tids_and_blobs(daemon, server, tmp_path, capsys, make):
    filled(daemon, "--image", "first.fs")
    kept = server(make=make)
    assert batos.main(["move", "first.fs", kept.uri]) == 0
    assert "both ends were read whole and are the same" in capsys.readouterr().out
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        assert len(client.call("list_documents", prefix="valve")["results"]) == 3
    assert one.stop() == 0
    assert batos.main(["move", kept.uri, "back.fs"]) == 0
    first, back = transactions_of("first.fs"), transactions_of("back.fs")
    assert back[:len(first)] == first and len(back) > len(first)
    assert blobs_of("first.fs").items() <= blobs_of("back.fs").items()
    assert faults_of("back.fs") == [] and not list(tmp_path.glob("*.part*"))


def test_a_move_that_was_cut_short_goes_on_and_another_image_is_refused(daemon, server, tmp_path, capsys, monkeypatch):
    filled(daemon, "--image", "first.fs")
    kept = server()
    taken, put = [], batos._put_transaction

    def put_some(target, one, records):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(put(target, one, records))
    monkeypatch.setattr(batos, "_put_transaction", put_some)
    assert batos.main(["move", "first.fs", kept.uri]) == 130
    monkeypatch.setattr(batos, "_put_transaction", put)
    capsys.readouterr()
    assert batos.main(["move", "first.fs", kept.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["transactions"] == len(transactions_of("first.fs")) - 5 and told["went_on_behind"]
    filled(daemon, "--image", "second.fs")
    assert batos.main(["move", "second.fs", kept.uri]) == 1
    assert "holds something else already" in capsys.readouterr().err
    assert batos.main(["move", "second.fs", "first.fs"]) == 1
    assert "exists already" in capsys.readouterr().err
    for where, to in (("first.fs", "./first.fs"), (kept.uri, kept.uri)):
        assert batos.main(["move", where, to]) == 1
        assert "is where the image is already" in capsys.readouterr().err


def test_what_is_served_or_damaged_is_not_moved(daemon, server, tmp_path, capsys):
    kept = server()
    one = daemon_on(daemon, kept.uri)
    assert batos.main(["move", kept.uri, "back.fs"]) == 1
    assert "written by another daemon" in capsys.readouterr().err
    assert batos.main(["move", "kept.fs", "back.fs"]) == 1
    assert "in use by another process" in capsys.readouterr().err
    assert one.stop() == 0 and kept.stop() == 0
    next(tmp_path.glob("kept.fs.blob/**/0x*.blob")).unlink()
    assert batos.main(["move", "kept.fs", "back.fs"]) == 1
    assert "a check finds 1 faults" in capsys.readouterr().err and not pathlib.Path("back.fs").exists()


@pytest.mark.slow
def test_a_move_that_is_killed_goes_on_or_begins_anew(daemon, server, tmp_path):
    filled(daemon, "--image", "first.fs")
    kept = server()
    for words in (["first.fs", kept.uri], [kept.uri, "back.fs"]):
        for delay_s in (0.02, 0.05, 0.1):
            process = forks.start(["batos", "move", *words], tmp_path, subprocess.DEVNULL, subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay_s)
            process.kill()
            process.wait(60)
        done = pathlib.Path(words[1]).exists()
        assert done or batos.main(["move", *words]) == 0
    assert transactions_of("back.fs") == transactions_of("first.fs") and faults_of("back.fs") == []


def test_a_full_disk_of_the_server_is_told_and_gone_on_with(daemon, server, tmp_path):
    kept = server()
    one = daemon_on(daemon, kept.uri)
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
        size = (tmp_path / "kept.fs").stat().st_size + 300
        before = resource.prlimit(kept.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        with pytest.raises(batos.ImageError, match="File too large"):
            for number in range(20):
                client.call("index_document", doc_id=f"{number}.md", text=f"{NOTE} {number} " * 30)
        assert client.call("search_memory", query="brass valve")["results"]
        resource.prlimit(kept.process.pid, resource.RLIMIT_FSIZE, before)
        assert client.call("index_document", doc_id="after.md", text="After it copper.")["change"]
    assert one.stop() == 0 and kept.stop() == 0 and faults_of(tmp_path / "kept.fs") == []


def test_a_server_that_gives_out_an_oid_again_makes_no_two_objects_of_it(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    with contextlib.closing(image), image.db.transaction() as connection:
        given = iter([*2 * [b"\0" * 6 + b"\7\7"], b"\0" * 6 + b"\7\x08", connection.root()._p_oid, b"\0" * 6 + b"\7\x09"])
        connection._next_oid = lambda: next(given)
        assert [connection.new_oid()[-1] for _ in range(3)] == [7, 8, 9]
