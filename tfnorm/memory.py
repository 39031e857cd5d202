"""The memory of the machine."""

import os


def of_machine() -> int:
    """Its bytes; 0 where it does not tell, as on Windows."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return 0
    return os.sysconf(names[0]) * os.sysconf(names[1])
