"""A process that has imported batos already, and forks a daemon or a command line whenever one is wanted.

    process = forks.start(["batos", "--core", "none"], cwd=folder, stdout=writing, stderr=writing)

To import batos takes a second, of which a start of the daemon itself is a fifth, and the tests start hundreds. What is of the
real start (`python batos.py`) starts it so. A program is a module and its words; its `main(words)` gives the exit status. What
loads a core comes from a second process, which has imported more; it starts when the first such is wanted.
"""

import contextlib
import functools
import gc
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = {"batos": ROOT / "batos.py", "doubles": ROOT / "tests" / "doubles.py", "newer": ROOT / "tests" / "newer.py",
            "ageing": ROOT / "tests" / "ageing.py", "stopping": ROOT / "tests" / "stopping.py",
            "adding": ROOT / "tests" / "adding.py"}
NEEDED = ("numpy", "Stemmer", "safetensors.numpy")       # what a daemon imports at its first document
FOR_MODELS = ("torch", "bitsandbytes", "peft", "transformers.models.llama.modeling_llama")        # and for a core: ten seconds
REQUEST_BYTES = 200_000


class Running:
    """A program at work, whose output is read until it says that it listens, and on; `lines` is what it said.

    says: a pattern of the line by which it is there; `told` is its match.
    """

    def __init__(self, words, folder, says, begin):
        reading, writing = os.pipe()
        self.process = begin(words, folder, writing, writing)
        os.close(writing)
        self._output = os.fdopen(reading, encoding="utf-8")
        self.lines, self.told = [], None
        for line in self._output:
            self.lines.append(line)
            self.told = re.search(says, line)
            if self.told:
                break
        if self.told is None:
            raise AssertionError(f"{words[0]} did not start: " + "".join(self.lines))
        # what nobody reads would fill the pipe and stop the program
        self._reader = threading.Thread(target=self.lines.extend, args=(self._output,))
        self._reader.start()

    def stop(self, kill=False):
        """End it; returns its exit status."""
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        self.process.wait(timeout=60)
        self._reader.join(60)
        self._output.close()
        return self.process.returncode


class Forked:
    """A process forked for somebody, as subprocess.Popen shows one: args, pid, returncode, poll, wait, send_signal."""

    def __init__(self, words, told):
        self.args, self.returncode = words, None
        self._told = told                                # a pipe: the pid, and at the end the exit status
        self.pid = int(told.readline())
        self._handle = os.pidfd_open(self.pid)           # means this process, whoever gets its number later

    def poll(self):
        return self._ended(0)

    def wait(self, timeout=None):
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _ended(self, timeout_s):
        if self.returncode is None and select.select([self._told], [], [], timeout_s)[0]:
            self.returncode = int(self._told.readline())
            self._told.close()
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


@functools.cache
def channel(*more):
    """Return the socket to the process that forks, with more modules imported, which ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen([sys.executable, __file__, str(theirs.fileno()), *more], pass_fds=[theirs.fileno()])
    return ours


def loads_a_core(words):
    """Whether the words start a daemon that loads a core from this disk."""
    core = words[words.index("--core") + 1] if "--core" in words else "none"
    return core == "auto" or os.path.isdir(core)


def start(words, cwd, stdout, stderr):
    """Fork a process that runs a program in a folder, with this process's environment. Returns a Forked.

    stdout and stderr are descriptors, or subprocess.DEVNULL.
    """
    request = {"words": words, "cwd": str(cwd), "env": dict(os.environ)}
    reading, writing = os.pipe()
    with open(os.devnull, "wb") as nothing:
        files = [nothing.fileno() if file == subprocess.DEVNULL else file for file in (stdout, stderr)]
        wanted = channel(*FOR_MODELS) if loads_a_core(words) else channel()
        socket.send_fds(wanted, [json.dumps(request).encode()], [*files, writing])
    os.close(writing)
    return Forked(words, os.fdopen(reading))


def become(request, stdout, stderr):
    """Be the program that is wanted, in a process just forked, and end with its status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.closerange(3, stderr + 100)                       # the descriptors of this process's elders
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    told.watch(batos, request["cwd"])
    program, *words = request["words"]
    sys.argv = [str(PROGRAMS[program]), *words]
    batos._leave(sys.modules[program].main(words))


def serve(listening):
    """Fork for each request until the other end is closed; tell each one's pid and its exit status to who wanted it.

    listening: the descriptor of a socket.
    """
    running = {}                                         # {pidfd: (pid, the pipe to who wanted it)}
    while True:
        for ready in select.select([listening, *running], [], [])[0]:
            if ready != listening:
                tell_end(ready, *running.pop(ready))
                continue
            request, files = receive(listening)
            if not request:
                return
            stdout, stderr, told = files
            pid = os.fork()
            if not pid:
                return become(json.loads(request), stdout, stderr)
            os.close(stdout)
            os.close(stderr)
            os.write(told, b"%d\n" % pid)
            running[os.pidfd_open(pid)] = pid, told


def receive(listening):
    """Return (request, its descriptors); an empty request once the other end is closed."""
    with socket.socket(fileno=os.dup(listening)) as channel:
        request, files, _, _ = socket.recv_fds(channel, REQUEST_BYTES, 3)
    return request, files


def tell_end(handle, pid, told):
    """Reap a process that has ended, and tell how."""
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):           # nobody wants to know
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
    os.close(told)
    os.close(handle)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)         # Ctrl-C at the terminal is for who started me
    sys.path.insert(0, str(ROOT))
    import ageing  # noqa: F401
    import doubles  # noqa: F401
    import newer  # noqa: F401
    import stopping  # noqa: F401
    import told

    import batos
    os.environ.update(batos._OF_LIBRARIES)               # as a daemon does, before what reads it is loaded
    for module in (*NEEDED, *sys.argv[2:]):
        batos.need(module, "the tests")
    batos.need("nltk.tokenize.punkt", "the tests", alone=True)
    gc.freeze()                                          # collections in the forks touch, and so copy, none of it
    serve(int(sys.argv[1]))
