"""Kernels that start at once: forked from one process that has the libraries imported.

`make reproduce` runs as ``python -m koa_lib.report.kernels THREADS COMMAND...``. While the command runs, this
process listens on a socket; the first notebook makes it import what all of them need, and each gets a fork of
it as its kernel. As a script, with a kernel's own arguments, this file is the process that Jupyter starts: it
asks for the fork and lives as long. Without a socket, kernels start as usual.

Standard library only, because the script has to start quickly; none of our modules, because their code may
change while make runs.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from importlib import import_module
from select import select

SOCKET = "KOA_KERNELS"  # its path, for who starts kernels
LIBRARIES = ("ipykernel.kernelapp", "open_clip", "pandas", "scipy.stats", "seaborn", "sklearn.linear_model",
             "timm", "torchvision")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(threads, command):
    """Run a command, fork the kernels that it asks for, and end with its exit code.

    Parameters
    ----------
    threads : str
        In how many the libraries may compute, as kernels are told in OMP_NUM_THREADS.
    command : list of str
    """
    try:
        os.close(os.pidfd_open(os.getpid()))  # Linux since 5.3 tells of a process by a file
        folder = tempfile.mkdtemp(dir="/tmp")  # the path of a socket has to be short
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{folder}/kernels")
    except (AttributeError, OSError):
        os.execvp(command[0], command)
    listener.listen()
    running = subprocess.Popen(command, env={**os.environ, SOCKET: f"{folder}/kernels"},
                               close_fds=False)  # make's own jobserver
    signal.signal(signal.SIGINT, lambda *_: None)  # it is the command's, too: that ends first
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: running.send_signal(number))
    signal.signal(signal.SIGCHLD, lambda *_: _end_with(running, folder))
    os.environ |= {"OMP_NUM_THREADS": threads,
                   "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as in kernels
    while True:
        _end_with(running, folder)
        if not select([listener], [], [], 1)[0]:
            continue
        _import()
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            _become_kernel(*_attend(connection))
        connection.close()


def _end_with(running, folder):
    # At once, also in the middle of an import: what is frozen cannot be tidied up.
    code = running.poll()
    if code is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(code if code >= 0 else 128 - code)


def _import():
    shown, warnings.showwarning = warnings.showwarning, lambda *_, **__: None
    for name in LIBRARIES:
        with suppress(Exception):  # whoever needs it says so
            import_module(name)
    warnings.showwarning = shown
    gc.freeze()  # so that forks neither copy nor tidy up what they never touch


def _attend(connection):
    """What was asked for, in a process that becomes the kernel; its parent lives as long, and ends it and all
    that it has started when whoever asked is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.setsid()  # Ctrl-C is for make: Jupyter interrupts its kernels itself
    try:
        request, files, *_ = socket.recv_fds(connection, 2**20, 3)
        told = json.loads(request)
        if not (kernel := os.fork()):
            connection.close()
            return told, files
        connection.send(str(kernel).encode())
        over = os.pidfd_open(kernel)
        if over in select([connection, over], [], [])[0]:
            code = os.waitstatus_to_exitcode(os.waitpid(kernel, 0)[1])
            connection.send(str(code).encode())
    except (OSError, ValueError):  # whoever asked is gone
        pass
    os.killpg(0, signal.SIGKILL)


def _become_kernel(told, files):
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    sys.argv = ["ipykernel_launcher", *told["arguments"]]
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder where make runs
    for name in ("numpy.random", "torch"):  # else all kernels would draw the same numbers
        if name in sys.modules:
            sys.modules[name].seed()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance([*told["arguments"], f"--IPKernelApp.parent_handle={os.getppid()}"])
    sys.exit()


def ask(arguments):
    """Have a kernel forked, pass signals on to it, and return its exit code when it ends; without a server,
    become a usual one."""
    parent, server = os.getppid(), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    try:
        server.connect(os.environ[SOCKET])
        socket.send_fds(server, [json.dumps(told).encode()], [0, 1, 2])
    except OSError:
        os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *arguments])
    try:
        kernel = int(server.recv(64) or 0)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: os.killpg(os.getpgid(kernel), number))
        while not select([server], [], [], 1)[0]:
            if os.getppid() != parent:
                return 1
        return int(server.recv(64) or 1)
    except OSError:
        return 1


if __name__ == "__main__":
    if sys.argv[1] == "-f":
        sys.exit(ask(sys.argv[1:]))
    serve(sys.argv[1], sys.argv[2:])
