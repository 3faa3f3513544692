"""An image in a real PostgreSQL server: served, moved, killed at both ends, refused where it would not be kept safely."""

import contextlib
import itertools
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import tomllib

import engines
import pytest
import ZODB
import ZODB.blob
import ZODB.POSException
import ZODB.utils
from test_storage import (  # noqa: F401
    NOTE,
    at_home,
    blobs_of,
    documents_at,
    faults_of,
    filled,
    raise_ended,
    refused,
    transactions_of,
    under_load,
)

import batos

pytestmark = pytest.mark.skipif(engines.INITDB is None, reason="no PostgreSQL server is installed (apt install postgresql)")
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def cluster():
    one = engines.Cluster()
    yield one
    one.close()


@pytest.fixture
def uri(cluster):
    return cluster.database(f"mind{next(NUMBERS)}")


def name_of(uri):
    return re.search(r"/(mind\d+)\?", uri)[1]


def daemon_on(daemon, uri, *options):
    return daemon("--image", uri, "--lease-s", "2", *options)


def test_what_is_stored_is_there_after_a_restart_with_blobs_in_the_database(daemon, uri, cluster):
    one = daemon_on(daemon, uri)
    with batos.Client(one.endpoint) as client:
        assert client.call("index_document", doc_id="valve.md", text=NOTE)["change"]
        told = client.call("health")["result"]["engine"]
        assert told["kind"] == "postgres" and told["durable_blobs"] is True and "host" not in told["where"]
        told = client.call("inspect", target="pLLM_obj.lora_repository.ROBIN.model_blob")
        assert "durable_blobs" not in told
    assert one.stop() == 0, "".join(one.lines)[-3000:]
    cached = pathlib.Path("batos.blobs")
    cached.rename("batos.blobs.before")                      # what is there is in the database
    again = daemon_on(daemon, uri)
    with batos.Client(again.endpoint) as client:
        assert client.call("search_memory", query="brass valve")["results"]
        assert client.call("health")["result"]["writer"]["epoch"] == 2
    assert again.stop() == 0
    assert faults_of(uri) == []
    assert b"brass valve" not in b"" and cluster.dump(name_of(uri))


@pytest.mark.parametrize("name", ["synchronous_commit", "fsync", "full_page_writes"])
def test_a_server_that_would_lose_what_it_acknowledges_is_refused(uri, cluster, capsys, name):
    if name == "synchronous_commit":
        cluster.sql("postgres", f"ALTER DATABASE {name_of(uri)} SET synchronous_commit = off")
    else:
        cluster.stop()
        cluster.start(f"{name}=off")
    told = refused(["--image", uri], capsys)
    if name != "synchronous_commit":
        cluster.stop()
        cluster.start()
    assert f"{name} is off" in told and "ALTER SYSTEM" in told


def test_it_is_on_for_our_connections_whatever_the_database_is_told_later(uri, cluster):
    image = batos.Image.open(uri)
    cluster.sql("postgres", f"ALTER DATABASE {name_of(uri)} SET synchronous_commit = off")
    batos.genesis(image)
    connection = image.storage._adapter.connmanager.open()[0]
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone()[0] == "on"
    connection.close()
    image.close()


@pytest.mark.parametrize("uri, told", [
    ("postgres://batos@127.0.0.1:1/mind?connect_timeout=2", "no database is given out"),
    ("postgres://me:secret@127.0.0.1:1/mind?nonsense=1", "is no address of a database")])
def test_a_wrong_address_is_told_without_its_password(capsys, uri, told):
    said = refused(["--image", uri], capsys)
    assert told in said and "secret" not in said


def test_a_database_that_is_not_there_is_told(cluster, capsys):
    assert "does not exist" in refused(["--image", f"postgres://batos@/nowhere?host={cluster.folder}"], capsys)


def test_a_second_daemon_is_refused_and_a_former_writer_fails(daemon, uri, capsys):
    one = daemon_on(daemon, uri)
    assert "is written by another daemon" in refused(["--image", uri, "--lease-s", "60"], capsys)
    other = batos.Image.open(uri)
    while True:
        try:
            batos._claimed(other, "tcp://127.0.0.1:2", "", raise_ended)
            break
        except ZODB.POSException.ConflictError:              # the other's beat came between
            pass
    other.close()
    with batos.Client(one.endpoint) as client, pytest.raises(batos.NoReply):
        client.call("index_document", doc_id="valve.md", text=NOTE)
    assert one.process.wait(60) == batos._EXIT_FENCED
    assert any("another daemon writes the image now" in line for line in one.lines)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["begun", "voted"])
def test_a_stand_by_goes_on_where_the_writer_was_stopped_amid_a_commit(tmp_path, uri, point):
    first, second = (f"tcp://127.0.0.1:{engines.free_port()}" for _ in "ab")
    writer = engines.Host(tmp_path, "a", uri, first, 1.0, False).wait_for("listens on")
    with batos.Client(first) as client:
        assert client.call("index_document", doc_id="valve.md", text=NOTE)["change"]
    assert writer.stop_amid("writer beat", point)
    other = engines.Host(tmp_path, "b", uri, second, 1.0)
    try:
        other.wait_for("listens on")                         # one that has voted has the lock of commits for a while
        writer.process.send_signal(signal.SIGCONT)
        assert writer.process.wait(60) == batos._EXIT_FENCED
        assert "valve.md" in documents_at(second)
    finally:
        writer.end(signal.SIGKILL)
        assert other.end() == 0
    assert faults_of(uri) == []


def test_an_image_is_moved_there_and_back_with_its_tids_and_blobs(daemon, uri, capsys):
    filled(daemon, "--image", "first.fs")
    assert batos.main(["move", "first.fs", uri]) == 0
    assert batos.main(["move", uri, "back.fs"]) == 0
    assert capsys.readouterr().out.count("both ends were read whole and are the same") == 2
    assert transactions_of("first.fs") == transactions_of("back.fs") and faults_of("back.fs") == []
    assert blobs_of("first.fs") == blobs_of("back.fs")
    one = daemon_on(daemon, uri)
    with batos.Client(one.endpoint) as client:
        assert len(client.call("list_documents", prefix="valve")["results"]) == 3
        change = client.call("history", target="knowledge_catalog_obj")["results"]
        assert change is not None and client.call("pack", days=0)["result"]
        told = client.call("forget", doc_id="valve-0.md")["details"]
        assert "VACUUM FULL" in told
        with pytest.raises(batos.NotHere, match="pg_dump"):
            client.call("backup")
    assert one.stop() == 0 and faults_of(uri) == []


def test_what_pg_dump_wrote_is_the_image_blobs_included(daemon, uri, cluster):
    filled(daemon, "--image", uri)
    other = cluster.database(f"mind{next(NUMBERS)}")
    cluster.read(name_of(other), cluster.dump(name_of(uri)))
    shutil.rmtree("batos.blobs")
    assert batos.main(["move", other, "back.fs"]) == 0
    assert batos.main(["move", uri, "first.fs"]) == 0
    assert transactions_of("first.fs") == transactions_of("back.fs") and blobs_of("first.fs") == blobs_of("back.fs") != {}


def test_what_is_forgotten_is_gone_from_a_dump(daemon, uri, cluster):
    one = daemon_on(daemon, uri)
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="secret.md", text="The combination is zibeline quokka.")
        assert b"zibeline".hex().encode() in cluster.dump(name_of(uri))
        client.call("forget", doc_id="secret.md")
    assert one.stop() == 0, "".join(one.lines)[-3000:]
    assert b"zibeline".hex().encode() not in cluster.dump(name_of(uri))


def test_a_server_that_is_gone_is_told_of_and_gone_on_with_once_it_is_back(daemon, uri, cluster):
    one, told = daemon_on(daemon, uri, "--lease-s", "600"), None
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
        cluster.stop("immediate")
        try:
            # of the server nothing is asked for it, so nobody waits for that one
            assert client.call("health")["result"]["image_mb"] > 0
            with pytest.raises(batos.StorageOffline, match="does not answer"):
                client.call("index_document", doc_id="late.md", text="A late note of copper.")
            cluster.start()
            while told is None:
                with contextlib.suppress(batos.StorageOffline):
                    told = client.call("index_document", doc_id="late.md", text="A late note of copper.")
            assert told["change"] and client.call("search_memory", query="copper")["results"]
        except batos.NoReply:                                # it was amid the end of a commit of its own just then
            assert one.process.wait(60) == batos._EXIT_FENCED
            assert any("amid the last step of a commit" in line for line in one.lines), "".join(one.lines)[-3000:]
            if told is None:
                with contextlib.suppress(AssertionError):
                    cluster.start()
            return
    assert one.stop() == 0, "".join(one.lines)[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["daemon", "server"])
def test_nothing_acknowledged_is_lost_where_either_end_is_killed_amid_writes(daemon, uri, cluster, who):
    everything = []
    for turn in range(2):
        one = daemon_on(daemon, uri)
        then = {"daemon": lambda one=one: one.stop(kill=True), "server": cluster.kill}[who]
        everything += under_load(one.endpoint, 15 + 7 * turn, then)
        one.stop(kill=True)
        if who == "server":
            cluster.start()
        again = daemon_on(daemon, uri)
        assert set(everything) <= documents_at(again.endpoint)
        assert again.stop() == 0
    assert faults_of(uri) == []


def test_what_the_extra_needs_is_pinned_in_one_way():
    root = pathlib.Path(batos.__file__).parent
    pins = (root / "tests" / "postgres.txt").read_text().split()
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["postgres"]
    assert pins == extra and all(pin in batos._POSTGRES for pin in pins) and json.dumps(pins)


def answers_of(storage, *statements):
    """Return what each statement tells in a session that has begun a commit: its rows' first column."""
    with storage._store_connection_pool.borrowing() as session:
        told = []
        for statement in statements:
            session.cursor.execute(statement)
            told.append([value for value, in session.cursor.fetchall()])
        return told


@pytest.fixture
def opened(uri, tmp_path, monkeypatch):
    """Yield (storage, connection) of a database without a daemon."""
    monkeypatch.chdir(tmp_path)                          # where copies of blobs are kept
    storage = batos.open_engine(uri)
    database = ZODB.DB(storage)
    connection = database.open()
    yield storage, connection
    connection.close()
    database.close()


def test_what_a_commit_left_in_its_session_is_no_part_of_the_next(opened):
    storage, connection = opened
    root = connection.root()
    for name in ("one", "two"):
        root[name] = ZODB.blob.Blob(name.encode())
        connection.transaction_manager.commit()
        assert answers_of(storage, *(f"SELECT count(*) FROM {name}" for name in batos._COMMITS_ROWS)) == [[0]] * 3
    # of what was written before nothing is written again, and no blob of before is taken out of the database
    written, blobs = answers_of(storage, "SELECT zoid FROM object_state WHERE tid = (SELECT max(tid) FROM object_state)",
                                "SELECT lo_get(chunk) FROM blob_chunk ORDER BY tid")
    assert set(written) == {ZODB.utils.u64(one._p_oid) for one in (root, root["two"])}
    assert [bytes(content) for content in blobs] == [b"one", b"two"]


def test_a_session_s_tables_keep_their_rows_and_are_cut_off_once_they_are_large(opened):
    storage, connection = opened
    sizes = []
    for count in (1, 3_000_000, 1):
        connection.root()["text"] = random.Random(7).randbytes(count)
        connection.transaction_manager.commit()
        # the one session that there is, as it was left
        [session] = storage._store_connection_pool._connections
        session._cursor.execute("SELECT count(*), pg_total_relation_size('temp_store') FROM temp_store")
        rows, size = session._cursor.fetchone()
        session.connection.rollback()
        assert rows == 1
        sizes.append(size)
    assert sizes[0] < sizes[1] > 3_000_000 and sizes[2] < 1 << 20


@pytest.fixture
def small_cluster():
    """A server on a file system of its own, of 150 MB, and where that is."""
    disk = pathlib.Path(tempfile.mkdtemp(prefix="batos-", dir="/tmp"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m,mode=755", "tmpfs", disk], capture_output=True).returncode:
        disk.rmdir()
        pytest.skip("mounting a file system is not allowed here")
    one = engines.Cluster(disk)
    yield one, disk
    one.close()
    subprocess.run(["umount", "-l", disk], check=True)
    disk.rmdir()


@pytest.mark.slow
def test_a_full_disk_of_the_server_is_told_and_gone_on_with(small_cluster, daemon):
    cluster, disk = small_cluster
    one, stored = daemon_on(daemon, cluster.database("small")), []
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text=NOTE)
        filling = disk / "filling"
        filling.write_bytes(bytes(shutil.disk_usage(disk).free - 3_000_000))
        with pytest.raises(batos.ImageError, match="the disk of the PostgreSQL server does not take it"):
            for number in range(20):                     # it may be told amid a commit's last step, too
                client.call("index_document", doc_id=f"{number}.md", text=random.Random(number).randbytes(300_000).hex())
                stored.append(f"{number}.md")
        assert client.call("search_memory", query="brass valve")["results"]
        filling.unlink()
        assert client.call("index_document", doc_id="after.md", text="After it copper.")["change"]
        names = [row["doc_id"] for row in client.call("list_documents")["results"]]
        assert {"valve.md", "after.md", *stored} <= set(names) and f"{len(stored)}.md" not in names
    assert one.stop() == 0


@pytest.mark.parametrize("code, raised", [("53100", OSError), ("57P01", batos.ImageBroken), (None, batos.ImageBroken)])
def test_a_last_step_that_is_refused_for_want_of_room_is_no_end(code, raised):
    class Server:
        def tpc_finish(self, transaction, f):
            error = OSError("could not extend file")
            error.pgcode = code
            raise error
    storage = type("Kept", (batos.KeptElsewhere, Server), {})()
    with pytest.raises(raised):
        storage.tpc_finish(None)
    assert (storage.broken is None) == (code == "53100")
