//! The command `kvasi`: runs components over a store, and looks into a store from a shell.
//!
//! Flow: arguments (`args`) -> one function per subcommand (`run`, `keys`, `operate`, `copy`) -> exit code. What goes wrong is a [`failure::Failure`]:
//! a text for people on standard error and exit code 2.
//! Exit codes: 0 done; 1 the key is not there, `verify` has found something, `copy` a difference, `conformance` a case that fails, or the component says so; 2 it could not be
//! done, or the command line is wrong; 134 the component
//! trapped; any other is the component's own.

mod args;
mod compiled;
mod component;
mod conformance;
mod copy;
mod failure;
mod keys;
#[cfg(feature = "serve")]
mod metrics;
mod operate;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod watch;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Args::parse();
    start_log(&args);
    let outcome = match args.command {
        args::Command::Run(args) => run::run(&args),
        #[cfg(feature = "serve")]
        args::Command::Serve(args) => serve::serve(&args),
        args::Command::Watch(args) => watch::run(&args),
        args::Command::Get { at, key } => keys::get(&at, &key),
        args::Command::Set { at, key, value } => keys::set(&at, &key, &value),
        args::Command::Delete { at, key } => keys::delete(&at, &key),
        args::Command::Exists { at, key } => keys::exists(&at, &key),
        args::Command::List { at, prefix, null } => keys::list(&at, &prefix, null),
        args::Command::Incr { at, key, delta } => keys::increment(&at, &key, delta),
        args::Command::Buckets { store } => keys::buckets(&store),
        args::Command::Backup { dir, to } => operate::backup(&dir, &to),
        args::Command::Restore { from, dir } => operate::restore(&from, &dir),
        args::Command::Verify { dir, json } => operate::verify(&dir, json),
        args::Command::Copy(args) => copy::run(&args),
        args::Command::Conformance(args) => conformance::run(&args),
        args::Command::Stats { dir, json } => operate::stats(&dir, json),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("kvasi: {failure}");
        ExitCode::from(2)
    })
}

/// What the library reports goes to standard error; standard output is the component's or the value's.
fn start_log(args: &args::Args) {
    let of_environment = || std::env::var("KVASI_LOG").ok().and_then(|level| level.parse().ok());
    let level = args.log_level.or_else(of_environment).unwrap_or_else(|| args.command.log_level());
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    match args.log_format {
        args::LogFormat::Text => log.init(),
        args::LogFormat::Json => log.json().init(),
    }
}
