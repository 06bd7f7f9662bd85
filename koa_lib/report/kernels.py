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
    """Run a command, fork the kernels that it asks for, and return its exit code.

    Parameters
    ----------
    threads : str
        In how many the libraries may compute, as kernels are told in OMP_NUM_THREADS.
    command : list of str
    """
    if not _can_watch():
        return subprocess.call(command, close_fds=False)
    folder, ours = tempfile.mkdtemp(dir="/tmp"), os.getpid()  # the path of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"{folder}/kernels")
            listener.listen()
            running = subprocess.Popen(command, env={**os.environ, SOCKET: f"{folder}/kernels"},
                                       close_fds=False)  # make's own jobserver
            signal.signal(signal.SIGINT, lambda *_: None)  # it is the command's, too: that ends first
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda number, _: running.send_signal(number))
            os.environ |= {"OMP_NUM_THREADS": threads,
                           "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as in kernels
            ended = os.pidfd_open(running.pid)
            while ended not in select([listener, ended], [], [])[0]:
                _import()
                connection, _ = listener.accept()
                if not os.fork():
                    listener.close()
                    _attend(connection)
                connection.close()
            return running.wait()
    finally:
        if os.getpid() == ours:
            shutil.rmtree(folder)


def _can_watch():
    # Whether this system tells of a process by a file: Linux since 5.3.
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _import():
    shown, warnings.showwarning = warnings.showwarning, lambda *_, **__: None
    for name in LIBRARIES:
        with suppress(ImportError):  # whoever needs it says so
            import_module(name)
    warnings.showwarning = shown
    gc.freeze()  # so that forks neither copy nor tidy up what they never touch


def _attend(connection):
    # A process that forks one kernel, and ends it when whoever asked for it is gone.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()  # Ctrl-C is for make: Jupyter interrupts its kernels itself
    request, files, *_ = socket.recv_fds(connection, 2**20, 3)
    kernel = os.fork()
    if not kernel:
        connection.close()
        _become_kernel(**json.loads(request), files=files)
    connection.send(str(kernel).encode())
    over = os.pidfd_open(kernel)
    if over not in select([connection, over], [], [])[0]:
        os.kill(kernel, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(kernel, 0)[1])
    with suppress(OSError):
        connection.send(str(code).encode())
    os._exit(0)


def _become_kernel(arguments, environment, folder, files):
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.remove(sys.path[0])  # the folder where make runs
    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGINT, signal.default_int_handler)
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    sys.exit()


def ask(arguments):
    """Have a kernel forked, pass signals on to it, and return its exit code when it ends."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ[SOCKET])
        told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(server, [json.dumps(told).encode()], [0, 1, 2])
        kernel = int(server.recv(64))
        for number in SIGNALS:
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        while not select([server], [], [], 1)[0]:
            if os.getppid() != parent:
                return 1
        return int(server.recv(64) or 1)


if __name__ == "__main__":
    if sys.argv[1] == "-f":
        sys.exit(ask(sys.argv[1:]))
    os._exit(serve(sys.argv[1], sys.argv[2:]))  # at once: what is frozen cannot be tidied up
