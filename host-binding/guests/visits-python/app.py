"""visits: counts visits and remembers visitors in wasi:keyvalue. The twin of ../visits-rust, which says what it does."""

import sys

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import atomics, batch, environment, store
from wit_world.imports.atomics import Cas, CasError_CasFailed
from wit_world.imports.store import Error_AccessDenied, Error_NoSuchStore

PREFIX = "visits/"
LOG_VISITORS_MAX = 5


class Failed(Exception):
    """The call that failed, and why."""


def called(name, call, *args):
    """Makes a call; its failure names it."""
    try:
        return call(*args)
    except Err as err:
        raise Failed(f"{name}: {why(err.value)}") from err


def why(error):
    if isinstance(error, Error_NoSuchStore):
        return "no such store"
    return "access denied" if isinstance(error, Error_AccessDenied) else error.value


def log_with(name, log):
    """`name`, then the newest entries of `log`, separated by ", "."""
    kept = log.split(b", ")[: LOG_VISITORS_MAX - 1] if log else []
    return b", ".join([name.encode(), *kept])


def remember(bucket, name):
    """Puts `name` at the head of the log. The swap fails if another visit wrote it since, and hands us a fresh attempt."""
    cas = called("cas.new", Cas.new, bucket, PREFIX + "log")
    while True:
        log = log_with(name, called("cas.current", cas.current) or b"")
        try:
            atomics.swap(cas, log)
            return log
        except Err as err:
            if not isinstance(err.value, CasError_CasFailed):
                raise Failed(f"swap: {why(err.value.value)}") from err
            cas = err.value.value


def list_keys(bucket):
    """The keys of this program, sorted: a listing has no order, and the bucket may hold other keys."""
    keys, cursor = [], None
    while True:
        page = called("list-keys", bucket.list_keys, cursor)
        keys += [key for key in page.keys if key.startswith(PREFIX)]
        cursor = page.cursor
        if cursor is None:
            return sorted(keys, key=str.encode)


def visit(name):
    """One visit: the lines of its report."""
    bucket = called("open", store.open, "")
    last = called("get", bucket.get, PREFIX + "last/name")
    if last is None:
        called("set", bucket.set, PREFIX + "first", name.encode())
    count = called("increment", atomics.increment, bucket, PREFIX + "count", 1)
    by_name = called("increment", atomics.increment, bucket, f"{PREFIX}by/{name}", 1)
    log = remember(bucket, name)
    pairs = [(PREFIX + "last/name", name.encode()), (PREFIX + "last/number", str(count).encode())]
    called("set-many", batch.set_many, bucket, pairs)
    stored = called("get-many", batch.get_many, bucket, list_keys(bucket))

    report = [f"Visit {count}. Welcome, {name}!".encode()]
    report += [b"First visit: nothing stored yet." if last is None else b"The last visit was by " + last + b"."]
    report += [f"Visits by {name}: {by_name}.".encode(), b"Latest visitors: " + log, b"Stored keys:"]
    report += [b"  " + pair[0].encode() + b" = " + pair[1] for pair in stored if pair is not None]
    return report


class Run(exports.Run):
    def run(self):
        arguments = environment.get_arguments()
        try:
            report = visit(arguments[1] if len(arguments) > 1 else "world")
        except Failed as failed:
            print(f"visits: {failed}", file=sys.stderr)
            raise Err(None) from failed
        sys.stdout.buffer.write(b"\n".join(report) + b"\n")
        sys.stdout.flush()
