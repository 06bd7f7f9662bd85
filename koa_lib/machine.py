"""The machine that a run was made on."""

import os
import platform
import re
from pathlib import Path


def facts():
    """Name-value pairs on processor, memory and system; no host name, no path."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [("Processor", names[0] if names else platform.machine()), ("Cores", cores)]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        rows.append(("Memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"))
    return [
        *rows,
        ("System", f"{platform.system()} {platform.machine()}"),
        ("Python", platform.python_version()),
    ]
