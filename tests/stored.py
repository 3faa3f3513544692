"""A method lane without a daemon, for the tests of stored methods; and the corpora of methods."""

import pathlib
import re

import batos

DATA = pathlib.Path(__file__).parent / "data" / "methods"
DOMAIN = ("tester", b"\0one")                            # the user and the connection of most messages
WAIT_S = 300                                            # a hang guard
CORPUS_SLOTS = {"name": "target", "items": [1, 2, 3], "count": 3, "note": "secret"}


def cases(name):
    """Yield (title, {head: text}, source) of a corpus."""
    text = (DATA / f"{name}.txt").read_bytes().decode()
    for part in re.split(r"^=== ", text, flags=re.M)[1:]:
        title, _, rest = part.partition("\n")
        head = {}
        while row := re.match(r"(expect|run|slots|args|result|after): ?(.*)\n", rest):
            head[row[1]] = row[2]
            rest = rest[row.end():]
        yield title.strip(), head, rest


def audit(source, name):
    """Return the error of the audit, or None."""
    try:
        batos.PersistenceGuardian().audit_code(source, name)
    except batos.CodeRejected as error:
        return error


class Machine:
    """A write lane and a method lane over an image; objects by name, messages by selector."""

    def __init__(self, folder, **given):
        self.image = batos.Image.open(f"{folder}/image.fs")
        batos.genesis(self.image)
        options = batos.load_settings({"method_deadline_s": 20.0, **given}, {})
        self.write = batos.WriteLane(self.image, batos.WriteToken(), options).start()
        self.lane = batos.MethodLane(self.image, self.write, options, batos.count_uses).start()

    def make(self, name, slots, author="", **sources):
        """Put an object into the root, with methods that nobody audited."""
        def apply(root):
            made = root[name] = batos.UvmObject(**slots)
            for selector, source in sources.items():
                batos.set_slot(made, selector, batos.Method(selector=selector, source=source, author=author))
        self.write.call(batos.Job("make", apply), WAIT_S)

    def job(self, name, selector, *args, done=lambda outcome: None, told=None, domain=DOMAIN):
        def reply(value):
            if told is not None:
                told.append(value)
            return batos.to_wire(value)
        return batos.Job("send", lambda root: batos.Message(root[name], selector, list(args), {}, reply), done, domain=domain)

    def send(self, name, selector, *args, domain=DOMAIN):
        """Return the outcome of a message, with the result as it was before the wire; raises its error."""
        told = []
        outcome = self.lane.call(self.job(name, selector, *args, told=told, domain=domain), WAIT_S)
        return outcome._replace(result=told[-1])

    def end(self, name, selector, *args, domain=DOMAIN):
        """Return the result of a message, or its error."""
        try:
            return self.send(name, selector, *args, domain=domain).result
        except batos.BatosError as error:
            return error

    def slots(self, name):
        with batos.reading(self.image) as root:
            return {slot: value for slot, value in root[name]._slots.items() if not isinstance(value, batos.Method)}

    def close(self):
        self.lane.close()
        self.write.close()
        self.image.close()
