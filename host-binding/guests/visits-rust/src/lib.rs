//! visits: counts visits and remembers visitors in wasi:keyvalue. The twin of ../visits-c.
//!
//! One run is one visit; the first argument is the visitor's name, "world" without one. The report
//! on stdout tells what the runs before left. An error of the store goes to stderr, exit status 1.
//!
//! Keys, all in the default bucket:
//!
//! | key                  | value                     | written by       |
//! |----------------------|---------------------------|------------------|
//! | `visits/count`       | visits so far             | increment        |
//! | `visits/by/NAME`     | visits by NAME            | increment        |
//! | `visits/first`       | who came first            | set              |
//! | `visits/last/name`   | who came last             | set-many         |
//! | `visits/last/number` | and as which visit        | set-many         |
//! | `visits/log`         | the latest visitors       | compare-and-swap |
//!
//! Standard input and output come from `wasip2` and not from `std`, so that the same source also
//! builds where only the target wasm32-unknown-unknown is at hand.

use std::io::{self, Write};

use wasi::keyvalue::atomics::{self, Cas, CasError};
use wasi::keyvalue::batch;
use wasi::keyvalue::store::{self, Bucket, Error};
use wasip2::cli::{environment, stderr, stdout};

wit_bindgen::generate!({ path: "../../../wit", world: "imports" });

const PREFIX: &str = "visits/";
const LOG_VISITORS_MAX: usize = 5;

/// The call that failed, and why.
type Failure = (&'static str, Error);

/// What one visit saw.
struct Report {
    visit: i64,
    visits_by_name: i64,
    last: Option<Vec<u8>>,
    log: Vec<u8>,
    stored: Vec<(String, Vec<u8>)>,
}

fn visit(name: &str) -> Result<Report, Failure> {
    let bucket = store::open("").map_err(|e| ("open", e))?;

    let last_key = format!("{PREFIX}last/name");
    let last = bucket.get(&last_key).map_err(|e| ("get", e))?;
    if last.is_none() {
        let first_key = format!("{PREFIX}first");
        bucket
            .set(&first_key, name.as_bytes())
            .map_err(|e| ("set", e))?;
    }

    let visit = increment(&bucket, "count")?;
    let visits_by_name = increment(&bucket, &format!("by/{name}"))?;

    let log = remember(&bucket, name)?;

    let pairs = [
        (last_key, name.as_bytes().to_vec()),
        (
            format!("{PREFIX}last/number"),
            visit.to_string().into_bytes(),
        ),
    ];
    batch::set_many(&bucket, &pairs).map_err(|e| ("set-many", e))?;

    let keys = list_keys(&bucket)?;
    let stored = batch::get_many(&bucket, &keys).map_err(|e| ("get-many", e))?;
    let stored = stored.into_iter().flatten().collect(); // without those deleted since the listing

    Ok(Report {
        visit,
        visits_by_name,
        last,
        log,
        stored,
    })
}

fn increment(bucket: &Bucket, name: &str) -> Result<i64, Failure> {
    atomics::increment(bucket, &format!("{PREFIX}{name}"), 1).map_err(|e| ("increment", e))
}

/// Puts `name` at the head of the log and returns the log. Visits may run at the same time: the
/// swap fails if another one wrote the log since we read it, and hands us a fresh attempt.
fn remember(bucket: &Bucket, name: &str) -> Result<Vec<u8>, Failure> {
    let mut cas = Cas::new(bucket, &format!("{PREFIX}log")).map_err(|e| ("cas.new", e))?;
    loop {
        let before = cas.current().map_err(|e| ("cas.current", e))?;
        let log = log_with(name, &before.unwrap_or_default());
        match atomics::swap(cas, &log) {
            Ok(()) => return Ok(log),
            Err(CasError::CasFailed(fresh)) => cas = fresh,
            Err(CasError::StoreError(error)) => return Err(("swap", error)),
        }
    }
}

/// `name`, then the newest entries of `log`, separated by ", ".
fn log_with(name: &str, log: &[u8]) -> Vec<u8> {
    let mut separators = (0..log.len()).filter(|&at| log[at..].starts_with(b", "));
    let kept = separators.nth(LOG_VISITORS_MAX - 2).unwrap_or(log.len());
    let mut longer = name.as_bytes().to_vec();
    if kept > 0 {
        longer.extend_from_slice(b", ");
        longer.extend_from_slice(&log[..kept]);
    }
    longer
}

/// The keys of this program, sorted: a listing has no order, and the bucket may hold other keys.
fn list_keys(bucket: &Bucket) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    let mut cursor = None;
    loop {
        let page = bucket
            .list_keys(cursor.as_deref())
            .map_err(|e| ("list-keys", e))?;
        keys.extend(page.keys.into_iter().filter(|key| key.starts_with(PREFIX)));
        cursor = page.cursor;
        if cursor.is_none() {
            keys.sort();
            return Ok(keys);
        }
    }
}

fn print(out: &mut impl Write, name: &str, report: &Report) -> io::Result<()> {
    writeln!(out, "Visit {}. Welcome, {name}!", report.visit)?;
    match &report.last {
        Some(last) => out.write_all(&[b"The last visit was by ", &last[..], b".\n"].concat())?,
        None => writeln!(out, "First visit: nothing stored yet.")?,
    }
    writeln!(out, "Visits by {name}: {}.", report.visits_by_name)?;
    out.write_all(&[b"Latest visitors: ", &report.log[..], b"\n"].concat())?;
    writeln!(out, "Stored keys:")?;
    for (key, value) in &report.stored {
        out.write_all(&[b"  ", key.as_bytes(), b" = ", value, b"\n"].concat())?;
    }
    out.flush()
}

struct Visits;

impl wasip2::exports::cli::run::Guest for Visits {
    fn run() -> Result<(), ()> {
        let arguments = environment::get_arguments();
        let name = arguments.get(1).map_or("world", String::as_str);
        match visit(name) {
            Ok(report) => print(&mut stdout::get_stdout(), name, &report).map_err(|_| ()),
            Err((call, error)) => {
                let why = match &error {
                    Error::NoSuchStore => "no such store",
                    Error::AccessDenied => "access denied",
                    Error::Other(text) => text,
                };
                // If stderr fails too, there is nobody left to tell.
                let _ = writeln!(stderr::get_stderr(), "visits: {call}: {why}");
                Err(())
            }
        }
    }
}

wasip2::cli::command::export!(Visits);
