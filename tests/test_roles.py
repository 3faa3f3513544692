"""Who may what, by every way to it: each command and each primitive, for each role, by each spelling and detour.

What is declared where a thing is done (@command, @primitive) is looked at from outside: the outcome is that of the declared
role, however it is reached. A command that is added has to be given a row.
"""

import contextlib
import pathlib
import tempfile
import types

import conftest
import pytest
import stored

import batos

BRIEF = {"type": "direct_synthesis", "selector": "answer_", "args": ["Which valve?"]}
METHOD = "def hum(self):\n    return 1\n"
SENT = {"target": "genesis_obj", "selector": "slotNames"}
# command -> fields with which it does little or fails for another reason than the role
FIELDS = {
    "health": {}, "get_full_state": {}, "subscribe": {}, "unsubscribe": {}, "shutdown": {}, "cancel": {"cycle": "0x99"},
    "list_experts": {}, "activate_expert": {"expert": "NOBODY"}, "incarnate": {}, "inspect": {"target": "genesis_obj"},
    "send_message": SENT, "create_method": {"target_oid": "genesis_obj", "method_name": "hum", "method_code": METHOD},
    "confirm": {"method": "0x99"}, "rollback": {"target_oid": "genesis_obj", "method_name": "nothing"},
    "export": {"target": "genesis_obj"}, "import": {"parcel": b"x", "target": "genesis_obj", "slot": "x"},
    "initiate_cognitive_cycle": {"mission_brief": BRIEF}, "list_cycles": {}, "list_documents": {}, "list_objects": {},
    "show_document": {"doc_id": "a"}, "search_memory": {"query": "valve"}, "index_document": {"doc_id": "a", "text": "valve"},
    "index_part": {"upload": "12345678", "number": 0, "text": "valve"}, "history": {}, "undo": {"change": "0" * 16 + ".0"},
    "unindex_document": {"doc_id": "b"}, "move_document": {"doc_id": "b", "to": "c"}, "supersede": {"older": "b", "newer": "c"},
    "feedback": {"cycle": "0x99", "mark": "right"}, "list_golden": {}, "judge_golden": {"rows": [99], "accept": True},
    "forge": {}, "list_jobs": {},
    "backup": {"folder": "relative"}, "pack": {}, "forget": {"doc_id": "b"}, "ingest_and_display_yourself": {},
    "display_yourself": {}, "measures": {}, "list_pages": {}, "why": {"cycle": "0x99"}, "show_page": {"name": "nothing"},
}
ADMINS = {"shutdown", "incarnate", "judge_golden", "forge", "backup", "pack", "ingest_and_display_yourself", "display_yourself"}
# beside the declared role, which fields make more of a command
MORE = [("index_document", {"doc_id": "a", "path": "/etc/passwd"}, "admin")]
LATER = "shutdown", "display_yourself", "ingest_and_display_yourself"        # an admin's: the daemon ends, a window opens

# primitive -> the command that does the same; without a row it only tells, as `inspect` does, or sets slots, as messages do
STANDS_FOR = {
    **dict.fromkeys(("activate_expert_", "set_adapter_", "load_adapter_", "delete_adapter_", "cacheExpert_withWeights_"),
                    "activate_expert"),
    "index_document_": "index_document", "unindex_document_": "unindex_document", "move_document_": "move_document",
    "supersede_": "supersede", "search_": "search_memory", "restore_document_": "undo", "restore_incarnation_": "rollback",
    "forge_": "forge", "cancel_": "forge", "improve_workflow_": "forge", "use_workflow_": "forge", "transitionTo_": "forge",
    "improveCognition": "forge", "fineTuneWith_": "forge", "back_to_": "forge",
    **dict.fromkeys(("start_cognitive_cycle_for_", "infer_", "synthesize_response_for_", "reflectOn_", "curate_",
                     "analyze_and_resolve_cycle_failures", "perform_cognitive_efficiency_audit"), "initiate_cognitive_cycle"),
    "display_yourself": "display_yourself", "ingest_and_display_yourself": "ingest_and_display_yourself",
}


@pytest.fixture(scope="module")
def locked():
    """A daemon with a client of each role: {role: Client}."""
    with tempfile.TemporaryDirectory(prefix="roles-") as folder, contextlib.ExitStack() as stack:
        ring = batos.KeyRing(str(pathlib.Path(folder, "live_image.fs")))
        files = {role: ring.add(role, role) for role in batos.ROLES}
        running = conftest.DaemonProcess(folder, ("curve", True), core=0.0)
        stack.callback(running.stop, kill=True)
        yield {role: stack.enter_context(batos.Client(running.endpoint, 60, file)) for role, file in files.items()}


def outcome(client, command, fields):
    """Return "OK" or the name of the error."""
    try:
        client.call(command, **fields)
    except batos.BatosError as error:
        return type(error).__name__
    return "OK"


def may(role, needed):
    return batos.ROLES.index(role) >= batos.ROLES.index(needed)


def test_each_command_has_its_row():
    assert set(FIELDS) == set(batos.COMMANDS)
    assert {name for name, row in batos.COMMANDS.items() if row.role == "admin"} == ADMINS


@pytest.mark.parametrize("role", batos.ROLES)
def test_each_command_is_for_its_role(locked, role):
    rows = [(name, FIELDS[name], row.role) for name, row in batos.COMMANDS.items() if not (may(role, "admin") and name in LATER)]
    for command, fields, needed in rows + MORE:
        assert (outcome(locked[role], command, fields) != "Forbidden") is may(role, needed), (role, command)


@pytest.mark.parametrize("role", batos.ROLES)
def test_a_command_in_another_spelling_is_none(locked, role):
    for name in FIELDS:
        others = {f"{name} ", f" {name}", name.upper(), name.replace("_", ":"), f"{name}_", f"{name}\0", name.title()}
        for spelt in others - {name}:
            assert outcome(locked[role], spelt, FIELDS[name]) not in ("OK", "Forbidden"), (role, spelt)


@pytest.mark.parametrize("selector", ["display_yourself", "display:yourself", "ingest_and_display_yourself"])
def test_what_is_an_admins_is_no_ones_else_by_a_message_a_method_or_a_mission(locked, selector):
    admin, writer, reader = (locked[role] for role in ("admin", "write", "read"))
    brief = {"type": "unhandled_message", "selector": selector, "args": ["x"]}
    source = f"def go(self):\n    return self.{batos.selector_name(selector)}()\n"
    admin.call("create_method", target_oid="genesis_obj", method_name="go", method_code=source)
    for client in (writer, reader):
        for more in ({}, {"generate": True}):
            assert outcome(client, "send_message", {"target": "genesis_obj", "selector": selector, **more}) == "Forbidden"
        for target in ("genesis_obj", None):
            fields = {"mission_brief": brief, "target_oid": target}
            assert outcome(client, "initiate_cognitive_cycle", fields) == "Forbidden"
    assert outcome(writer, "send_message", {"target": "genesis_obj", "selector": "go"}) not in ("OK", "Forbidden")
    assert not any("display" in row["mission"] for row in admin.call("list_cycles", limit=1000)["results"])


# What a command for writers brings along that another one has for admins


@pytest.mark.parametrize("role", batos.ROLES)
def test_an_expert_comes_in_by_an_admin_alone_also_in_a_parcel(image, role):
    parcel = batos.Parcel(b"", "genesis_obj", "brought", 8, True)
    parcel.staged = [types.SimpleNamespace(name="STRANGER", sha256="0" * 64)]
    with message(image, role) as root, contextlib.nullcontext() if may(role, "admin") else pytest.raises(batos.Forbidden):
        parcel.fitting(root)


@pytest.mark.parametrize("command", sorted(batos.COMMANDS))
def test_a_change_is_undone_by_who_may_what_made_it(image, command):
    with batos.writing(image) as root:
        root._p_jar.changes = {}
        batos.set_slot(root["genesis_obj"], "mood", command)
        entry = batos.page_entry(batos.Job(command, None), None, root._p_jar.changes, 1)
        batos.append_page(root["ledger_obj"].write, [entry], 0)
        root._p_jar.changes = None
    for role in ("write", "admin"):
        with message(image, role) as root:
            request = types.SimpleNamespace(command=types.SimpleNamespace(change=batos.change_name(page_of(root), 0)), who="eve",
                                            role=role)
            refused = not may(role, batos.COMMANDS[command].role)
            with pytest.raises(batos.Forbidden) if refused else system(root):
                batos.COMMANDS["undo"].function(request, root)


def page_of(root):
    """Return the tid of the latest page."""
    tree = root["ledger_obj"].write
    return tree[tree.maxKey()].tid


def system(root):
    return batos.system_writes(root)


# Primitives


@pytest.fixture(scope="module")
def image():
    with tempfile.TemporaryDirectory(prefix="roles-") as folder:
        image = batos.Image.open(f"{folder}/image.fs")
        batos.genesis(image)
        yield image
        image.close()


@contextlib.contextmanager
def message(image, role):
    """Yield the root as a message of somebody has it; what it changes is not kept."""
    unit = batos.Unit(image.db)
    unit.manager.begin()
    unit.root._p_jar.activation = batos.Activation("eve", role)
    try:
        yield unit.root
    finally:
        unit.manager.abort()
        unit.connection.close()


def fresh(root, **slots):
    made = batos.UvmObject(**slots)
    root._p_jar.add(made)
    return made


def receiver_of(root, name):
    """Return a root object that answers a primitive by a slot of its own; an object of which each does; or one that has it."""
    objects = (obj for obj in root.values() if isinstance(obj, batos.UvmObject))
    found = (obj for obj in objects if isinstance(batos.own(obj).get(name), batos.Method))
    if batos.PRIMITIVES[name].universal:
        return root["genesis_obj"]
    return next(found, None) or fresh(root, **{name: batos.method(name)})


def by_slot(root, name):
    """Another object's slot refers to the method."""
    return fresh(root, detour=batos.method("detour", name)), "detour"


def by_delegation(root, name):
    """An object delegates to the one that understands it."""
    return fresh(root, **{"parent*": [fresh(root, detour=batos.method("detour", name))]}), "detour"


def by_clone(root, name):
    """A clone of the object that understands it."""
    receiver = receiver_of(root, name)
    return fresh(root, **{"parent*": [receiver], "detour": batos.method("detour", name)}), "detour"


DETOURS = {
    "its name": lambda root, name: (receiver_of(root, name), name),
    "colons": lambda root, name: (receiver_of(root, name), name.replace("_", ":")),
    "a slot": by_slot, "delegation": by_delegation, "a clone": by_clone,
}
ARGUMENTS = [(), ("x",), ("x", "y")]


def sent(receiver, selector, args):
    """Return "OK" or the name of the error; a wrong count of arguments is none that a role is told by."""
    try:
        batos.send(receiver, selector, *args)
    except Exception as error:
        return type(error).__name__
    return "OK"


@pytest.mark.parametrize("name", sorted(batos.PRIMITIVES))
def test_each_primitive_is_for_its_role_by_each_detour(image, name):
    needed = batos.PRIMITIVES[name].role
    for role in batos.ROLES:
        for detour, way in DETOURS.items():
            for args in ARGUMENTS:
                with message(image, role) as root:
                    told = sent(*way(root, name), args)
                assert (told != "Forbidden") is may(role, needed), (role, detour, args, told)


def test_a_primitive_needs_what_the_command_needs_that_does_the_same():
    assert set(STANDS_FOR) <= set(batos.PRIMITIVES)
    for name, row in batos.PRIMITIVES.items():
        command = STANDS_FOR.get(name, "inspect" if row.reads else "send_message")
        assert row.role == batos.COMMANDS[command].role, name


@pytest.mark.slow
@pytest.mark.parametrize("role", batos.ROLES)
def test_a_stored_method_may_what_its_sender_may(tmp_path, role):
    """Each primitive by a stored method that somebody else wrote: of more than slots it changes nothing, whoever sends it."""
    machine, names = stored.Machine(tmp_path), [name for name in sorted(batos.PRIMITIVES) if not name.startswith("_")]
    sources = {f"go_{number}": f"def go_{number}(self, *args):\n    return self.{name}(*args)\n"
               for number, name in enumerate(names)}
    understood = {name: batos.method(name) for name in names if not batos.PRIMITIVES[name].universal}
    machine.make("it", {"n": 1, **understood}, "ann", **sources)
    for number, name in enumerate(names):
        told, row = by_role(machine, role, f"go_{number}"), batos.PRIMITIVES[name]
        if not may(role, row.role):
            assert "needs the role" in told or "changes more than slots" in told, (name, told)
        elif not (row.reads or row.universal or row.lane == "core"):
            assert "changes more than slots" in told, (name, told)
    assert machine.slots("it") == {"n": 1}
    machine.close()


def by_role(machine, role, selector):
    """Return "OK" or the error of a message of a role."""
    job = machine.job("it", selector)
    job.role = role
    try:
        outcome = machine.lane.call(job, stored.WAIT_S)
    except batos.BatosError as error:
        return str(error)
    return "OK" if outcome.error is None else str(outcome.error)
