//! `kvasi copy`: a bucket from one store to another, whatever kinds they are; goes on where it was cut off.
//!
//! Flow: targets opened -> `kvasi_wasmtime::copy::copy`, its position kept in a file -> `verify`, both sides read again ->
//! a line of counts. Exit codes: 0 copied and equal; 1 the two differ; 2 it could not be done.

use crate::args::CopyArgs;
use crate::failure::Failure;
use crate::keys::print;
use indicatif::{ProgressBar, ProgressStyle};
use kvasi::{Options, Store};
use kvasi_wasmtime::Target;
use kvasi_wasmtime::backend::remote::{self, Local, Policy, RemoteBucket};
use kvasi_wasmtime::copy::{Position, Settings, Verified, copy, verify};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DIFFERENT: ExitCode = ExitCode::FAILURE;
/// How often the position goes to its file: what is copied again after a cut is what a second copies.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// The position file: for which copy, and how far.
#[derive(Debug, Deserialize, Serialize)]
struct Kept {
    from: String,
    to: String,
    after: Vec<u8>,
    keys: u64,
    bytes: u64,
}

pub(crate) fn run(args: &CopyArgs) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("no threads to copy with: {error}")))?;
    runtime.block_on(copied(args))
}

async fn copied(args: &CopyArgs) -> Result<ExitCode, Failure> {
    let to_bucket = args.to_bucket.as_ref().unwrap_or(&args.bucket);
    if args.from == args.to && to_bucket == &args.bucket {
        return Err(Failure::new("FROM and TO are one bucket: name another with --to-bucket"));
    }
    let policy = Policy { timeout: Duration::from_secs(30), ..Policy::default() };
    let from = source(&args.from, &args.bucket, policy).await?;
    let to = destination(&args.to, to_bucket, policy).await?;
    let kept = Kept {
        from: format!("{} {}", args.from, args.bucket),
        to: format!("{} {to_bucket}", args.to),
        after: Vec::new(),
        keys: 0,
        bytes: 0,
    };
    let start = args.resume.as_deref().map_or(Ok(Position::default()), |file| kept.read(file))?;
    let settings = Settings { parallel: args.parallel.get(), ..Settings::default() };

    let bar = progress_bar("copying");
    let mut kept_at = Instant::now();
    let done = copy(&from, &to, settings, start, |position| {
        bar.set_position(position.keys);
        if let Some(file) = &args.resume
            && kept_at.elapsed() >= KEEP_EVERY
        {
            kept_at = Instant::now();
            let written = kept.write(position, file);
            written.map_err(|error| kvasi_wasmtime::Error::with_detail(kvasi_wasmtime::Code::Io, error))?;
        }
        Ok(())
    });
    let done = done.await.map_err(|error| failed(args, "copying", &error))?;
    bar.finish_and_clear();
    if args.no_verify {
        remove(args.resume.as_deref())?;
        return print(|out| writeln!(out, "copied {} keys, {} bytes; not verified", done.keys, done.bytes));
    }

    let bar = progress_bar("verifying");
    let verified = verify(&from, &to, settings, |verified| bar.set_position(verified.from.keys)).await;
    bar.finish_and_clear();
    let verified = verified.map_err(|error| failed(args, "verifying", &error))?;
    if !verified.is_equal() {
        print(|out| out.write_all(differences(&verified).as_bytes()))?;
        return Ok(DIFFERENT);
    }
    remove(args.resume.as_deref())?;
    let sum = verified.from;
    print(|out| {
        writeln!(out, "copied {} keys, {} bytes; both sides have checksum {:016x}", sum.keys, sum.bytes, sum.checksum)
    })
}

/// The bucket to read: nothing of it is changed or made.
async fn source(target: &Target, bucket: &str, policy: Policy) -> Result<Arc<dyn RemoteBucket>, Failure> {
    match target {
        Target::Service(url) => service(target, url, bucket, policy).await,
        Target::Directory(dir) => {
            crate::keys::there(dir)?;
            let store = Store::open_read_only(dir, Options::new()).map_err(|error| Failure::store(dir, &error))?;
            let found = store.existing_bucket(bucket).map_err(|error| Failure::store(dir, &error))?;
            let found = found.ok_or_else(|| Failure::new(format!("store {target}: there is no bucket {bucket:?}")))?;
            Ok(Arc::new(Local::new(Arc::new(found))))
        }
    }
}

/// The bucket to write, made if it is not there. A store in a directory syncs each write: what the position file says is
/// copied survives what the file survives.
async fn destination(target: &Target, bucket: &str, policy: Policy) -> Result<Arc<dyn RemoteBucket>, Failure> {
    match target {
        Target::Service(url) => service(target, url, bucket, policy).await,
        Target::Directory(dir) => {
            let fail = |error| Failure::store(dir, &error);
            let store = Store::open(dir, Options::new().durability(kvasi::Durability::Sync)).map_err(fail)?;
            Ok(Arc::new(Local::new(Arc::new(store.bucket(bucket).map_err(fail)?))))
        }
    }
}

async fn service(
    target: &Target,
    url: &url::Url,
    bucket: &str,
    policy: Policy,
) -> Result<Arc<dyn RemoteBucket>, Failure> {
    let connected = remote::connect(url, policy).await.and_then(|service| service.bucket(bucket));
    connected.map_err(|error| Failure::new(format!("cannot use {target}: {error}")))
}

fn failed(args: &CopyArgs, doing: &str, error: &kvasi_wasmtime::Error) -> Failure {
    let advice = if args.resume.is_some() {
        "the same command goes on from where it was"
    } else {
        "--resume FILE lets a copy go on"
    };
    Failure::new(format!("{doing} {} to {} stopped: {error}\n  {advice}", args.from, args.to))
}

fn differences(verified: &Verified) -> String {
    let Verified { from, to, differing } = verified;
    let mut text = format!(
        "the two differ: {} keys, {} bytes, checksum {:016x} in FROM; {} keys, {} bytes, checksum {:016x} in TO\n",
        from.keys, from.bytes, from.checksum, to.keys, to.bytes, to.checksum
    );
    for key in differing {
        text += &format!("  {key:?}\n");
    }
    text += "was one of them written meanwhile? copying again brings what is missing\n";
    text
}

/// Shown where a person looks, and nowhere else: indicatif is silent when standard error is no terminal.
fn progress_bar(doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {human_pos} keys, {per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(doing)
}

impl Kept {
    /// The position that the file holds; the beginning if there is no file.
    fn read(&self, file: &Path) -> Result<Position, Failure> {
        let fail = |what: String| Failure::new(format!("{}: {what}", file.display()));
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Position::default()),
            Err(error) => return Err(fail(format!("cannot be read: {error}"))),
        };
        let kept: Kept =
            serde_json::from_slice(&text).map_err(|error| fail(format!("is no position of a copy: {error}")))?;
        if (&kept.from, &kept.to) != (&self.from, &self.to) {
            return Err(fail(format!("is the position of a copy of {} to {}", kept.from, kept.to)));
        }
        Ok(Position { after: Some(kept.after.into()), keys: kept.keys, bytes: kept.bytes })
    }

    /// Replaces the file in one step: after a cut it holds this position or the one before.
    fn write(&self, position: &Position, file: &Path) -> std::io::Result<()> {
        let Some(after) = &position.after else { return Ok(()) };
        let Position { keys, bytes, .. } = *position;
        let kept = Kept { from: self.from.clone(), to: self.to.clone(), after: after.to_vec(), keys, bytes };
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&kept)?)?;
        std::fs::rename(new, file)
    }
}

fn remove(file: Option<&Path>) -> Result<(), Failure> {
    match file.map(std::fs::remove_file) {
        Some(Err(error)) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::new(format!("the copy is done, but its position file stays: {error}")))
        }
        _ => Ok(()),
    }
}
