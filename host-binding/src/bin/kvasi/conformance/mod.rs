//! `kvasi conformance`: the conformance suite on any store, as a table of what it does as the interface says.
//!
//! Flow: target -> a look at whether it answers -> each case of `suite`, in buckets of its own, which are emptied after it -> table
//! or JSON. Exit codes: 0 no case failed; 1 one did; 2 the store could not be asked.
//! Invariant: nothing is read, written or deleted but in buckets whose names begin with a random text of this run, or, for a directory, in a
//! directory that is made for the run and removed.

use crate::args::ConformanceArgs;
use crate::failure::Failure;
use crate::keys::print;
use kvasi_wasmtime::backend::remote::{Blocking, Policy, RemoteBackend, connect};
use kvasi_wasmtime::backend::{Backend, Capabilities, LocalBucket, PageBounds};
use kvasi_wasmtime::{Code, Error, Target as Place};
use serde_json::json;
use std::backtrace::Backtrace;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use suite::guest::Language;
use suite::target::{BUCKETS, Host, Target};
use tokio::runtime::Handle;
use url::Url;

/// A case: its name and what it does.
type Case = (&'static str, fn(&mut Host));

/// The cases of a file, in its order.
macro_rules! cases {
    ($($case:ident)*) => {
        pub(crate) const CASES: &[crate::conformance::Case] = &[$((stringify!($case), $case)),*];
    };
}
pub(crate) mod suite;

const FILES: [&[Case]; 5] =
    [suite::store::CASES, suite::list::CASES, suite::atomics::CASES, suite::batch::CASES, suite::limits::CASES];

enum Outcome {
    Pass,
    /// What an assertion said.
    Fail(String),
    /// What the store or the shape has not.
    NotSupported(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Fail(_) => "FAIL",
            Outcome::NotSupported(_) => "not supported",
        }
    }

    fn why(&self) -> &str {
        match self {
            Outcome::Pass => "",
            Outcome::Fail(why) | Outcome::NotSupported(why) => why,
        }
    }
}

struct Asked {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

pub(crate) fn run(args: &ConformanceArgs) -> Result<ExitCode, Failure> {
    let place = TestPlace::of(args)?;
    let fail = |error: &Error| Failure::new(format!("cannot ask {}: {error}", args.target));
    let probe = place.target(None).map_err(|error| fail(&error))?;
    let can = probe.capabilities();
    let lists = look(&probe).map_err(|error| fail(&error))?;
    drop(probe);
    eprintln!("the cases write to {}", place.says());

    let said = Said::collect();
    let asked_for = |name: &str| args.cases.is_empty() || args.cases.iter().any(|part| name.contains(part.as_str()));
    let cases = FILES.into_iter().flatten().filter(|(name, _)| asked_for(name));
    let (mut asked, mut left) = (Vec::new(), Vec::new());
    for (i, (name, case)) in cases.enumerate() {
        let begun = Instant::now();
        let outcome = match not_supported(name, args.guest, can, lists.as_deref()) {
            Some(why) => Outcome::NotSupported(why),
            None => {
                let target = place.target(Some(i)).map_err(|error| fail(&error))?;
                let (outcome, target) = ask(*case, args.guest, target, lists.is_none(), &said);
                if !args.keep && target.is_none_or(|target| target.clear().is_err()) {
                    left.push(*name);
                }
                outcome
            }
        };
        asked.push(Asked { name, outcome, took: begun.elapsed() });
    }
    if asked.is_empty() {
        return Err(Failure::new("no case has such a name"));
    }
    place.remove();
    if !left.is_empty() {
        eprintln!("kvasi: keys of these cases could not be deleted: {}", left.join(", "));
    }
    let text = if args.json { as_json(args, &asked) } else { as_table(&asked) };
    print(|out| out.write_all(text.as_bytes()))?;
    let failed = asked.iter().any(|asked| matches!(asked.outcome, Outcome::Fail(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Why this case is not asked.
fn not_supported(case: &str, guest: Language, can: Capabilities, lists: Option<&str>) -> Option<String> {
    if guest.lacks(case) {
        return Some("the shape of the interface has no such call".to_owned());
    }
    match case {
        "batch_52_all_or_nothing_to_readers" if !(can.atomic_batches && can.snapshot_reads) => {
            Some("a large batch is written and read in pieces".to_owned())
        }
        "list_20_order_where_the_back_end_promises_it" if !can.ordered => {
            Some("keys come in an order of the store's own".to_owned())
        }
        _ if case.starts_with("list_") => lists.map(|why| format!("the store does not list its keys: {why}")),
        _ => None,
    }
}

/// Whether the store answers at all; and, if it lists no keys, why not.
fn look(target: &Target) -> Result<Option<String>, Error> {
    // A store may have no room for the longest of their names behind a prefix.
    BUCKETS.iter().try_for_each(|name| target.bucket(name).map(drop))?;
    let bucket = target.bucket("")?;
    bucket.set("k", b"v")?;
    let listed = bucket.list(None, PageBounds { keys_max: 1, bytes_max: 100, entries_max: 100 });
    bucket.delete("k")?;
    match listed {
        Ok(_) => Ok(None),
        Err(error) if error.code() == Code::Unsupported => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Asks one case; gives the target back to be emptied, unless it did not come to be opened.
fn ask(case: fn(&mut Host), guest: Language, target: Target, lists: bool, said: &Said) -> (Outcome, Option<Target>) {
    let mut host = None;
    let passed = catch_unwind(AssertUnwindSafe(|| {
        let new = if lists { Host::new } else { Host::without_listing };
        case(host.insert(new(guest, target)));
    }));
    let said = said.take();
    let outcome = if passed.is_ok() { Outcome::Pass } else { Outcome::Fail(said) };
    (outcome, host.and_then(Host::into_target))
}

/// What assertions say when they fail, in place of standard error.
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn collect() -> Said {
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = said.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let text = text_of(panic);
            // A panic that nobody's assertion made is a fault of this program: where it was is worth knowing.
            tracing::debug!(backtrace = %Backtrace::capture(), "{text}");
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }));
        Said(said)
    }

    /// The first of what was said since: the others follow from it.
    fn take(&self) -> String {
        let said = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        said.into_iter().next().unwrap_or_default()
    }
}

fn text_of(panic: &PanicHookInfo<'_>) -> String {
    let text = panic.payload_as_str().unwrap_or("it did not say why");
    let place = panic.location().map_or_else(String::new, |at| {
        let file = Path::new(at.file()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!(" ({file}:{})", at.line())
    });
    format!("{}{place}", text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Where the cases write.
enum TestPlace {
    Service { url: Box<Url>, prefix: String, runtime: tokio::runtime::Runtime, policy: Policy },
    Directory(PathBuf),
}

impl TestPlace {
    fn of(args: &ConformanceArgs) -> Result<TestPlace, Failure> {
        let name = format!("kvasi-{:08x}", fastrand::u32(..));
        match &args.target {
            Place::Service(url) => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                let runtime = builder.worker_threads(1).enable_all().build();
                let runtime = runtime.map_err(|error| Failure::new(format!("no threads for connections: {error}")))?;
                // Behind a prefix that the URL has: a user may be allowed no other names. Short: some stores have little room.
                let given =
                    url.query_pairs().find(|(name, _)| name == "prefix").map_or_else(Default::default, |at| at.1);
                let prefix = format!("{given}{name}.");
                let policy = Policy { timeout: Duration::from_secs(30), ..Policy::default() };
                Ok(TestPlace::Service { url: Box::new(url.clone()), prefix, runtime, policy })
            }
            Place::Directory(dir) => {
                let dir = dir.join(name);
                let made = std::fs::create_dir_all(&dir);
                made.map_err(|error| Failure::new(format!("cannot make {}: {error}", dir.display())))?;
                Ok(TestPlace::Directory(dir))
            }
        }
    }

    fn says(&self) -> String {
        match self {
            TestPlace::Service { prefix, .. } => format!("names that begin with {prefix}"),
            TestPlace::Directory(dir) => format!("the directory {}", dir.display()),
        }
    }

    /// What the case of that number runs on.
    fn target(&self, case: Option<usize>) -> Result<Target, Error> {
        let own = case.map_or_else(|| "look".to_owned(), |case| case.to_string());
        match self {
            TestPlace::Service { url, prefix, runtime, policy } => {
                let mut own_url = Url::clone(url);
                let others = url.query_pairs().filter(|(name, _)| name != "prefix");
                own_url
                    .query_pairs_mut()
                    .clear()
                    .extend_pairs(others)
                    .append_pair("prefix", &format!("{prefix}{own}."));
                let (policy, runtime) = (*policy, runtime.handle().clone());
                Target::reopened(move || {
                    let service = runtime.block_on(connect(&own_url, policy))?;
                    Ok(Box::new(Service { service, runtime: runtime.clone() }))
                })
            }
            TestPlace::Directory(dir) => Target::engine(&dir.join(own)),
        }
    }

    /// Ends what the run made. What stays of a directory harms nobody.
    fn remove(self) {
        match self {
            TestPlace::Service { runtime, .. } => runtime.shutdown_timeout(Duration::from_secs(1)),
            TestPlace::Directory(dir) => drop(std::fs::remove_dir_all(dir)),
        }
    }
}

/// A service for guests that are called synchronously.
struct Service {
    service: Arc<dyn RemoteBackend>,
    runtime: Handle,
}

impl Backend for Service {
    fn capabilities(&self) -> Capabilities {
        self.service.capabilities()
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn LocalBucket>, Error> {
        Ok(Arc::new(Blocking::new(self.service.bucket(name)?, self.runtime.clone())))
    }
}

fn count(asked: &[Asked], word: &str) -> usize {
    asked.iter().filter(|asked| asked.outcome.word() == word).count()
}

fn as_table(asked: &[Asked]) -> String {
    let width = asked.iter().map(|asked| asked.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Asked { name, outcome, .. } in asked {
        let line = format!("{name:width$}  {:13}  {}", outcome.word(), outcome.why());
        text += line.trim_end();
        text.push('\n');
    }
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} of {} pass, {} not supported, {} failed",
        count(asked, "pass"),
        asked.len(),
        count(asked, "not supported"),
        count(asked, "FAIL"),
    );
    text
}

fn as_json(args: &ConformanceArgs, asked: &[Asked]) -> String {
    let cases = asked.iter().map(|Asked { name, outcome, took }| {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        json!({ "case": name, "result": outcome.word().to_lowercase(), "why": outcome.why(), "ms": ms })
    });
    let cases: Vec<_> = cases.collect();
    let report = json!({
        "kvasi": env!("CARGO_PKG_VERSION"),
        "target": args.target.to_string(),
        "guest": args.guest.name(),
        "pass": count(asked, "pass"),
        "not_supported": count(asked, "not supported"),
        "fail": count(asked, "FAIL"),
        "cases": cases,
    });
    format!("{report}\n")
}
