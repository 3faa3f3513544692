"""Objects against a plain model: slots, pointers, lookup, clone; with commit, abort, savepoints and reopening."""

import copy
import shutil
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import batos

NAMES = st.sampled_from(["a", "b", "c", "d"])
SLOTS = st.sampled_from(["x", "y", "z"])
POINTERS = st.sampled_from(["parent*", "traits*", "synthesis_state*"])
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                      max_leaves=4)


def delegates(model, name):
    """Return the names that an object asks, itself first: depth first, each once."""
    order, todo = [], [name]
    while todo:
        one = todo.pop()
        if one not in order:
            order.append(one)
            slots = model[one]
            pointers = sorted((slot for slot in slots if slot.endswith("*")), key=lambda slot: slot != "synthesis_state*")
            for pointer in reversed(pointers):
                todo.extend(reversed(slots[pointer]))
    return order


class ObjectsAgainstADict(RuleBasedStateMachine):
    """`model` is {name: {slot: value, or tuple of names for a pointer}}; `kept` is the model as committed."""

    @initialize()
    def open(self):
        self.folder = tempfile.mkdtemp()
        self.model = {name: {} for name in "abcd"}
        self.kept = copy.deepcopy(self.model)
        self.open_image()
        self.unit.manager.begin()
        self.unit.root.update({name: batos.UvmObject() for name in "abcd"})
        self.unit.manager.commit()
        self.unit.manager.begin()
        self.marks = []

    def open_image(self):
        self.image = batos.Image(batos.ImageStorage(f"{self.folder}/image.fs", blob_dir=f"{self.folder}/blobs"), None, None, [])
        self.unit = batos.Unit(self.image.db)

    def object(self, name):
        return self.unit.root[name]

    @rule(name=NAMES, slot=SLOTS, value=VALUES)
    def set_a_slot(self, name, slot, value):
        setattr(self.object(name), slot, value)
        self.model[name][slot] = copy.deepcopy(value)

    @rule(name=NAMES, pointer=POINTERS, others=st.lists(NAMES, max_size=3))
    def point(self, name, pointer, others):
        batos.set_slot(self.object(name), pointer, [self.object(other) for other in others])
        self.model[name][pointer] = tuple(others)

    @rule(name=NAMES, slot=SLOTS | POINTERS)
    def remove(self, name, slot):
        if slot in self.model[name]:
            batos.remove_slot(self.object(name), slot)
            del self.model[name][slot]

    @rule(name=NAMES, slot=SLOTS)
    def change_the_given_value_afterwards(self, name, slot):
        given = [1]
        setattr(self.object(name), slot, given)
        given.append(2)
        self.model[name][slot] = [1]

    @rule(name=NAMES, other=NAMES, persistently=st.booleans())
    def clone(self, name, other, persistently):
        one = self.object(name)
        self.unit.root[other] = one._clone_persistent_() if persistently else one.clone()
        self.model[other] = copy.deepcopy(self.model[name])
        self.rename(other)

    def rename(self, name):
        """A new object took a name: those that pointed at the old one still do, so point them anew, as the model says."""
        for holder, slots in self.model.items():
            for slot, targets in slots.items():
                if slot.endswith("*"):
                    batos.set_slot(self.object(holder), slot, [self.object(target) for target in targets])

    @rule()
    def commit(self):
        self.unit.manager.commit()
        self.unit.manager.begin()
        self.kept, self.marks = copy.deepcopy(self.model), []

    @rule()
    def abort(self):
        self.unit.manager.abort()
        self.unit.manager.begin()
        self.model, self.marks = copy.deepcopy(self.kept), []

    @rule()
    def savepoint(self):
        self.marks.append((self.unit.manager.savepoint(), copy.deepcopy(self.model)))

    @precondition(lambda self: self.marks)
    @rule()
    def roll_back(self):
        mark, self.model = self.marks.pop()
        mark.rollback()

    @rule(name=NAMES, slot=SLOTS, value=st.integers(100, 109))
    def another_connection_commits(self, name, slot, value):
        """What is uncommitted here is dropped first; the change must be seen by a lookup that was kept."""
        self.abort()
        for slots in self.model:
            batos.lookup(self.object(slots), slot)
        other = batos.Unit(self.image.db)
        other.manager.begin()
        setattr(other.root[name], slot, value)
        other.manager.commit()
        other.close()
        self.model[name][slot] = value
        self.kept = copy.deepcopy(self.model)
        self.abort()

    @rule()
    def reopen(self):
        self.unit.manager.abort()
        self.unit.close()
        self.image.db.close()
        self.open_image()
        self.unit.manager.begin()
        self.model, self.marks = copy.deepcopy(self.kept), []

    @invariant()
    def same(self):
        if not hasattr(self, "unit"):
            return
        for name, slots in self.model.items():
            held = self.object(name)._slots
            assert set(held) == set(slots)
            for slot, value in slots.items():
                expected = tuple(self.object(target) for target in value) if slot.endswith("*") else value
                assert held[slot] == expected and type(held[slot]) is type(expected)
            for slot in "xyz":
                self.same_lookup(name, slot)

    def same_lookup(self, name, slot):
        holder = next((one for one in delegates(self.model, name) if slot in self.model[one]), None)
        found = batos.lookup(self.object(name), slot)
        assert found.holder is (self.object(holder) if holder else None)
        assert found.value == (self.model[holder][slot] if holder else batos.ABSENT) or holder is None
        if holder:
            assert batos.send(self.object(name), slot) == getattr(self.object(name), slot) == self.model[holder][slot]

    def teardown(self):
        if hasattr(self, "unit"):
            self.unit.manager.abort()
            self.unit.close()
            self.image.db.close()
            shutil.rmtree(self.folder)


ObjectsAgainstADict.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestObjects = ObjectsAgainstADict.TestCase
