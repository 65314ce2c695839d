"""Builds fusepipe.device._device, the filter on /dev/fuse: `python fusepipe/device/_build.py` compiles it in place.

Needs a C compiler, pkg-config and the headers of libfuse 3 (Debian: gcc pkg-config libfuse3-dev).
"""

import os
import shlex
import subprocess
import sys
import tempfile

from cffi import FFI  # type: ignore[import-untyped]  # it ships no types

ALONE = __name__ == "__main__"
FOLDER = os.path.dirname(os.path.abspath(__file__))
SOURCES = (
    "clones",
    "collected",
    "current",
    "filter",
    "given_back",
    "hooks",
    "init",
    "inode_numbers",
    "native_connection",
    "native_device",
    "native_encode",
    "native_entry",
    "native_events",
    "native_contents",
    "native_known",
    "native_lost",
    "native_reply",
    "native_request",
    "native_slots",
    "native_space",
    "open_flags",
    "requests",
)
WIRE = os.path.join(os.path.dirname(FOLDER), "wire")
WARNINGS = ["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"]


def pkg_config(what: str, default: str) -> list[str]:
    """Flags that pkg-config knows for libfuse 3, or the usual ones where there is no pkg-config."""
    try:
        done = subprocess.run(["pkg-config", what, "fuse3"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return shlex.split(default)
    return shlex.split(done.stdout)


CDEF = """
    struct current_request {
        uint64_t unique, node, handle, owner;
        uint32_t opcode, uid, gid, pid, flags, size, valid, umask, kill, has_group, group;
        ...;
    };
    struct init_wishes {
        uint64_t wanted, refused;
        uint32_t max_readahead, max_write, page_size;
        uint16_t max_background, congestion_threshold;
        ...;
    };
    struct init_agreed {
        uint64_t offered, flags;
        uint32_t minor, max_readahead, max_write;
        uint16_t max_pages, max_background, congestion_threshold;
        ...;
    };
    struct filter_counters {
        uint64_t requests, forgets, releases, interrupts, taken, lost;
        ...;
    };

    extern struct current_request filter_current;
    extern struct init_agreed filter_agreed;
    extern struct filter_counters filter_counters;

    int filter_hooked(void);
    int filter_attach(const struct init_wishes *wishes);
    int filter_take(uint32_t opcode);
    int filter_answer(uint64_t unique, int error, const void *body, size_t size);
    int given_back_withhold(uint64_t handle);
    void given_back_admit(uint64_t handle);
    size_t given_back_take_forgets(uint64_t *pairs, size_t limit);
    size_t given_back_take_handles(uint64_t *handles, size_t limit);
    size_t given_back_take_untaken(uint64_t *handles, size_t limit);
    size_t filter_waiting(void);
    void filter_detach(void);

    struct native_policy {
        uint64_t entry_seconds, attr_seconds;
        uint32_t entry_nanoseconds, attr_nanoseconds, known, keep, contents, max_name, max_read, max_write;
        bool negative, direct, no_flush, writeback;
        bool opcodes[64];
        ...;
    };
    struct native_counters { uint64_t native, handed; ...; };
    struct native_target { uint64_t seq; uint32_t slot, clone, pid; ...; };
    enum native_found { FOUND_NOT, FOUND_PARKED, FOUND_WAITING, ... };
    extern struct native_policy native_policy;
    extern struct native_counters native_counters;

    int native_events_open(void);
    uint32_t native_events(void);
    int connection_add(
        int fd, uint32_t sent, uint32_t received, bool checksums, size_t send_limit, uint32_t max_payload);
    int native_begin(uint32_t threads);
    bool native_interrupt(const struct native_target *target);
    uint32_t connections_count(void);
    void connection_ping(uint32_t connection);
    uint64_t connection_heard(uint32_t connection);
    void connections_shut(void);
    bool connections_parked(void);
    void connection_replace(uint32_t connection, int fd, uint32_t sent, uint32_t received, bool checksums);
    void native_resume(void);
    void native_fail(int error);
    void native_stop(void);
    void native_clear(void);
    void native_lost_reset(void);
    const char *native_reason(void);
    void native_again(bool anything_freed);

    int slots_set_up(uint32_t count, uint64_t max_in_flight);
    int64_t slots_python_take(void);
    bool slots_reserve(uint64_t bytes);
    void slots_python_put(uint32_t slot, uint64_t seq);
    void slots_python_clear(uint32_t slot);
    void slots_python_give_back(uint32_t slot);
    void slots_release(uint64_t bytes);
    void slots_python_waits(uint32_t requests);
    uint64_t slots_seq(uint32_t slot);
    uint64_t slots_last_sent(uint32_t slot);
    uint64_t slots_in_flight(void);
    void slots_tell_busy(void);
    enum native_found slots_find(uint64_t unique, struct native_target *target, bool down);
    bool slots_waits(uint32_t slot, uint64_t seq);
    bool slots_abandon(uint32_t slot, uint64_t seq, uint32_t most);
    bool slots_abandon_one(uint32_t most);
    void slots_abandoned_came(void);
    uint32_t slots_abandoned(void);
    extern bool native_flush_matters;
    void use_python(void);

    extern "Python" void on_collected(void);
    extern "Python" void on_interrupt(uint64_t unique, uint64_t target);
    extern "Python" void on_ended(void);
    extern "Python" void on_taken(const void *arguments, size_t size);
"""

ffi = FFI()
ffi.cdef(CDEF)
ffi.set_source(
    "fusepipe.device._device",
    """
    #include "filter.h"
    #include "given_back.h"
    #include "native_connection.h"
    #include "native_device.h"
    #include "native_events.h"
    #include "native_lost.h"
    #include "native_policy.h"
    #include "native_reply.h"
    #include "native_slots.h"
    #include "native_space.h"

    static void on_collected(void);
    static void on_interrupt(uint64_t unique, uint64_t target);
    static void on_ended(void);
    static void on_taken(const void *arguments, size_t size);

    static void use_python(void)
    {
        filter_on_collected = on_collected;
        filter_on_interrupt = on_interrupt;
        filter_on_ended = on_ended;
        filter_on_taken = on_taken;
    }
    """,
    # setuptools wants paths relative to the project, a compilation in place happens elsewhere
    sources=[
        os.path.join(folder if ALONE else os.path.relpath(folder), f"{name}.c")
        for folder, names in ((FOLDER, SOURCES), (WIRE, ("native",)))
        for name in names
    ],
    include_dirs=[FOLDER, WIRE],
    # -Werror only for who works on the C files: a later compiler's new warning must not break an installation.
    extra_compile_args=[*WARNINGS, *(["-Werror"] if ALONE else []), *pkg_config("--cflags", "-I/usr/include/fuse3")],
    extra_link_args=pkg_config("--libs", "-lfuse3"),
)

if ALONE:
    # In a folder of its own: setuptools would read, and reject where it is old, the project's pyproject.toml.  The
    # finished module is renamed into place, so a process that has the old one loaded keeps it.
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as scratch:
        built = ffi.compile(tmpdir=scratch, verbose="-v" in sys.argv[1:])
        os.replace(built, os.path.join(FOLDER, os.path.basename(built)))
