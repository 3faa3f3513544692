"""Settings and errors: one table, and errors that carry their values."""

import pickle
import re

import pytest

import batos


def load(given=None, **environ):
    return batos.load_settings(given, environ)


def test_given_goes_before_the_environment_and_that_before_the_default():
    assert load().pending_max == 1024
    assert load(BATOS_PENDING_MAX="7").pending_max == 7
    assert load({"pending_max": "9"}, BATOS_PENDING_MAX="7").pending_max == 9
    assert load({"pending_max": None}, BATOS_PENDING_MAX="7").pending_max == 7


def test_every_default_is_a_value_that_its_own_row_takes():
    for name, row in batos.SETTINGS.items():
        assert row.name == name and row.unit and row.help
        assert row.parse(str(row.default)) == row.default
        assert getattr(load(), name) == row.default


def test_every_setting_can_come_from_the_environment():
    for name, row in batos.SETTINGS.items():
        text = "1" if isinstance(row.default, (int, float)) else "text"
        value = getattr(load(**{f"BATOS_{name.upper()}": text}), name)
        assert value == type(row.default)(text) and type(value) is type(row.default)


def test_the_real_environment_is_read_where_none_is_given(monkeypatch):
    monkeypatch.setenv("BATOS_ENDPOINT", "tcp://127.0.0.1:9")
    assert batos.load_settings().endpoint == "tcp://127.0.0.1:9"


def test_other_variables_of_the_environment_do_not_matter():
    assert vars(load(PENDING_MAX="x", XBATOS_PENDING_MAX="x")) == vars(load())


@pytest.mark.parametrize("given, environ, near", [
    ({"pendingmax": 1}, {}, "did you mean pending_max"),
    ({}, {"BATOS_PENDNG_MAX": "1"}, "BATOS_PENDNG_MAX; did you mean pending_max"),
    ({"xyz": None}, {}, "known are image, endpoint"),
    ({}, {"BATOS_": "1"}, "known are"),
])
def test_an_unknown_name_names_the_nearest(given, environ, near):
    with pytest.raises(batos.ConfigError, match=near):
        load(given, **environ)


@pytest.mark.parametrize("name, text", [
    ("pending_max", "many"), ("pending_max", "1.5"), ("pending_max", ""), ("pending_max", "-1"), ("drain_s", "soon"),
    ("drain_s", "-0.1"), ("drain_s", "nan"), ("drain_s", "inf"), ("relevance", "0,5"), ("pending_max", "9" * 5000),
])
def test_a_bad_value_is_refused_with_what_is_allowed(name, text):
    with pytest.raises(batos.ConfigError, match=f"(?s)setting {name}: got .*allowed is"):
        load({name: text})
    with pytest.raises(batos.ConfigError, match=f"setting {name}"):
        load(**{f"BATOS_{name.upper()}": text})


def test_a_number_larger_than_any_float_is_a_bad_value():
    with pytest.raises(batos.ConfigError):
        load({"pending_max": "9" * 400})


@pytest.mark.parametrize("text, value", [("true", True), ("Yes", True), ("ON", True), ("1", True),
                                         ("false", False), ("no", False), ("Off", False), ("0", False)])
def test_booleans_have_names(text, value):
    assert batos.Setting("x", False, "", "a switch").parse(text) is value


@pytest.mark.parametrize("text", ["", "2", "maybe", "truee"])
def test_other_words_are_no_booleans(text):
    with pytest.raises(batos.ConfigError, match="true or false"):
        batos.Setting("x", False, "", "a switch").parse(text)


def test_the_command_line_has_every_setting():
    parser = batos._command_line()
    for name, row in ((name, row) for name, row in batos.SETTINGS.items() if not row.secret):
        text = "1" if isinstance(row.default, (int, float)) else "text"
        for line in ([f"--{name.replace('_', '-')}", text], ["serve", f"--{name.replace('_', '-')}", text]):
            assert getattr(parser.parse_args(line), name) == text
    assert not set(vars(parser.parse_args([]))) & set(batos.SETTINGS)      # absent means: not given
    assert "core-key" not in parser.format_help() and batos.SETTINGS["core_key"].secret


def all_errors(kind=batos.BatosError):
    return [kind, *(one for sub in kind.__subclasses__() for one in all_errors(sub))]


@pytest.mark.parametrize("kind", all_errors())
def test_errors_carry_fields_and_survive_a_pipe(kind):
    error = kind("what happened; what to do", name="x", values=[1])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == error.message == "what happened; what to do"
    assert again.fields == {"name": "x", "values": [1]} and again.retry == kind.retry
    assert kind.__doc__ and kind.__module__ == "batos"


@pytest.mark.parametrize("kind, builtin", [
    (batos.ConfigError, ValueError), (batos.MessageNotUnderstood, AttributeError), (batos.BadSlot, TypeError),
    (batos.NotFound, KeyError), (batos.ProtocolError, ValueError), (batos.DeadlineExceeded, TimeoutError),
    (batos.NoReply, TimeoutError),
])
def test_errors_are_the_builtins_that_a_caller_would_catch(kind, builtin):
    with pytest.raises(builtin, match="^plain words$"):     # KeyError would show them quoted
        raise kind("plain words")


def test_what_may_be_sent_again_says_so():
    again = {"Busy", "Behind", "ShuttingDown", "DeadlineExceeded", "NoReply", "StorageOffline"}
    assert {kind.__name__ for kind in all_errors() if kind.retry} == again


# The settings file

def test_the_file_stands_between_environment_and_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('workers = 4\nendpoint = "tcp://127.0.0.1:7000"\ncurve = true\nrelevance = 1\n')
    found = batos.settings_from({"read_threads": "3"}, {"BATOS_SETTINGS": str(path), "BATOS_ENDPOINT": "tcp://127.0.0.1:8000"})
    assert found["workers"] == (4, str(path)) and found["curve"] == (True, str(path))
    assert found["endpoint"] == ("tcp://127.0.0.1:8000", "BATOS_ENDPOINT") and found["read_threads"] == (3, "given")
    assert found["relevance"] == (1.0, str(path)) and found["drain_s"] == (10.0, "default")


@pytest.mark.parametrize("text, told", [
    ("workers = \n", "TOML"), ("wokers = 4\n", "workers"), ("workers = 'many'\n", "workers"), ("[workers]\nn = 1\n", "workers"),
    ("\0", "TOML")])
def test_a_file_that_is_wrong_is_told(tmp_path, text, told):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(batos.ConfigError, match=told):
        batos.load_settings({}, {"BATOS_SETTINGS": str(tmp_path / "s.toml")})


@pytest.fixture
def secret(monkeypatch):
    row = batos.Setting("token", "", "text", "a secret of the tests", secret=True)
    monkeypatch.setattr(batos, "SETTINGS", {**batos.SETTINGS, "token": row})


def test_a_secret_comes_from_a_private_file_or_the_environment_and_is_never_shown(tmp_path, secret, monkeypatch, capsys):
    path = tmp_path / "s.toml"
    path.write_text('token = "hush"\n')
    path.chmod(0o644)
    monkeypatch.setenv("BATOS_SETTINGS", str(path))
    with pytest.raises(batos.ConfigError, match="chmod"):
        batos.load_settings()
    path.chmod(0o600)
    assert batos.load_settings().token == "hush"
    assert batos.main(["settings"]) == 0
    told = capsys.readouterr().out
    assert "hush" not in told and "(set)" in told
    with pytest.raises(SystemExit):
        batos._command_line().parse_args(["--token", "hush"])
    assert batos.shown_setting("image", "postgres://me:pass@host/db") == "postgres://host/db"


def test_settings_are_written_and_taken_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert batos.main(["settings", "workers=5", 'learn_roots=/a b"c', "curve=true"]) == 0
    assert "batos.toml" in capsys.readouterr().out
    assert (tmp_path / "batos.toml").stat().st_mode & 0o777 == 0o600
    settings = batos.load_settings()
    assert (settings.workers, settings.learn_roots, settings.curve) == (5, '/a b"c', True)
    assert batos.main(["settings", "workers="]) == 0 and batos.load_settings().workers == 2
    for bad in ("workers", "wrkers=2", "workers=many", "core_deadline_s=-1"):
        before = (tmp_path / "batos.toml").read_text()
        assert batos.main(["settings", bad]) == 1
        assert "batos:" in capsys.readouterr().err and (tmp_path / "batos.toml").read_text() == before


def test_image_and_settings_file_are_at_home_unless_a_path_is_said_for_one_call(tmp_path, monkeypatch):
    monkeypatch.delenv("BATOS_SETTINGS", raising=False)
    assert load().image == "live_image.fs" and batos.settings_file({}) == "batos.toml"
    home = {"BATOS_HOME": str(tmp_path)}
    assert load(**home).image == f"{tmp_path}/live_image.fs"
    (tmp_path / "batos.toml").write_text('image = "mind.fs"\nworkers = 5\n')
    assert (load(**home).image, load(**home).workers) == (f"{tmp_path}/mind.fs", 5)
    assert load({"image": "here.fs"}, **home).image == load(BATOS_IMAGE="here.fs", **home).image == "here.fs"
    (tmp_path / "batos.toml").write_text('image = "memory://"\n')
    assert load(**home).image == "memory://"


def test_a_home_that_is_no_folder_or_takes_no_files_is_refused_by_name(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for home, told in ((file, "is no folder"), ("/proc/batos", "nothing can be written"), ("/proc", "nothing can be written")):
        monkeypatch.setenv("BATOS_HOME", str(home))
        assert batos.main(["keys", "add", "ann"]) == 1
        assert re.search(rf"^batos: BATOS_HOME is {home}, .*{told}.*; name a folder", capsys.readouterr().err)
