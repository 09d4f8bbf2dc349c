// visits: counts visits and remembers visitors in wasi:keyvalue. The twin of ../visits-rust, which says what it does.

import { getArguments } from "wasi:cli/environment@0.2.0";
import { Cas, increment, swap } from "wasi:keyvalue/atomics@0.2.0-draft2";
import { getMany, setMany } from "wasi:keyvalue/batch@0.2.0-draft2";
import { open } from "wasi:keyvalue/store@0.2.0-draft2";

const PREFIX = "visits/";
const LOG_VISITORS_MAX = 5;

const bytes = (text) => new TextEncoder().encode(text);
const text = (bytes) => new TextDecoder().decode(bytes);

/** The call that failed, and why. */
class Failed extends Error {}

/** Makes a call; its failure names it. */
function called(name, call) {
    try {
        return call();
    } catch (error) {
        throw new Failed(`${name}: ${why(error.payload)}`);
    }
}

function why(error) {
    return error.tag === "other" ? error.val : error.tag.replaceAll("-", " ");
}

/** `name`, then the newest entries of `log`, separated by ", ". */
function logWith(name, log) {
    const kept = log === "" ? [] : log.split(", ").slice(0, LOG_VISITORS_MAX - 1);
    return [name, ...kept].join(", ");
}

/** Puts `name` at the head of the log. The swap fails if another visit wrote it since, and hands us a fresh attempt. */
function remember(bucket, name) {
    let cas = called("cas.new", () => Cas.new(bucket, PREFIX + "log"));
    for (;;) {
        const before = called("cas.current", () => cas.current());
        const log = logWith(name, before === undefined ? "" : text(before));
        try {
            swap(cas, bytes(log));
            return log;
        } catch (error) {
            if (error.payload.tag !== "cas-failed") throw new Failed(`swap: ${why(error.payload.val)}`);
            cas = error.payload.val;
        }
    }
}

/** The keys of this program, sorted: a listing has no order, and the bucket may hold other keys. */
function listKeys(bucket) {
    const keys = [];
    let cursor;
    do {
        const page = called("list-keys", () => bucket.listKeys(cursor));
        keys.push(...page.keys.filter((key) => key.startsWith(PREFIX)));
        cursor = page.cursor;
    } while (cursor !== undefined);
    return keys.sort();
}

/** One visit: the lines of its report. */
function visit(name) {
    const bucket = called("open", () => open(""));
    const last = called("get", () => bucket.get(PREFIX + "last/name"));
    if (last === undefined) called("set", () => bucket.set(PREFIX + "first", bytes(name)));
    const count = called("increment", () => increment(bucket, PREFIX + "count", 1n));
    const byName = called("increment", () => increment(bucket, `${PREFIX}by/${name}`, 1n));
    const log = remember(bucket, name);
    const pairs = [
        [PREFIX + "last/name", bytes(name)],
        [PREFIX + "last/number", bytes(String(count))],
    ];
    called("set-many", () => setMany(bucket, pairs));
    const stored = called("get-many", () => getMany(bucket, listKeys(bucket)));
    return [
        `Visit ${count}. Welcome, ${name}!`,
        last === undefined ? "First visit: nothing stored yet." : `The last visit was by ${text(last)}.`,
        `Visits by ${name}: ${byName}.`,
        `Latest visitors: ${log}`,
        "Stored keys:",
        ...stored.filter((pair) => pair !== undefined).map(([key, value]) => `  ${key} = ${text(value)}`),
    ];
}

export const run = {
    run() {
        const [, name = "world"] = getArguments();
        try {
            console.log(visit(name).join("\n"));
        } catch (error) {
            if (!(error instanceof Failed)) throw error;
            console.error(`visits: ${error.message}`);
            throw undefined;
        }
    },
};
