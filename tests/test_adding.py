"""One more command, setting, lane, format and facet: each is a row or two (adding.py), and the rest of BAT OS knows it."""

import adding
import conftest
import pytest

import batos


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory):
    """A daemon that has one more of each, started with a value of the new setting."""
    folder = tmp_path_factory.mktemp("adding")
    process = conftest.DaemonProcess(folder, "--words-most", "3", "--learn-roots", str(folder), program="adding",
                                     start=conftest.start_anew)
    yield process
    process.stop()


@pytest.fixture
def client(enlarged):
    with batos.Client(enlarged.endpoint) as one:
        yield one


def test_a_command_is_a_model_and_a_function(client):
    assert client.call("count_words", text="two words")["result"] == {"count": 2}
    with pytest.raises(batos.BadRequest, match="text"):
        client.call("count_words")


def test_a_setting_is_a_row(client):
    assert client.call("count_words", text="one two three four five")["result"] == {"count": 3}
    assert client.call("get_full_state")["result"]["settings"]["words_most"] == 3


def test_a_lane_is_a_row_and_health_tells_of_it(client):
    client.call("count_words", text="")
    health = client.call("health")["result"]
    assert "counting" in health["lanes"]
    assert "counting" in health["oldest_waiting_s"]


def test_a_format_is_a_row(client, enlarged):
    path = enlarged.folder / "log.notes"
    path.write_text('{"notes": ["The purser keeps the brass key.", "The kiln burns at night."]}')
    client.call("index_document", path=str(path), doc_id="log")
    found = client.call("search_memory", query="purser")["results"]
    assert "The purser keeps the brass key." in found[0]["chunk"]["text"]


def test_a_facet_is_a_row(client):
    told = client.call("inspect", target="brick_prototype_obj.pillars.purser_facet_")["result"]["slots"]
    assert told["intent"]["value"] == adding.FACET
