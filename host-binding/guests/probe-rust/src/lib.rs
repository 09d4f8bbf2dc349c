//! probe: runs a script from stdin against wasi:keyvalue and prints one line per command.
//!
//! The conformance guest. ../README.md defines the script language; ../probe-c is the twin and must
//! print the same bytes. Here: the slots and the commands. `args` reads the tokens of a line,
//! `print` writes results.
//!
//! A command first takes all its arguments, then looks into slots, then calls: so a malformed line
//! touches nothing. Standard input and output come from `wasip2` and not from `std`, so that the
//! same source also builds where only the target wasm32-unknown-unknown is at hand.

mod args;
mod print;

use std::io::{self, BufRead, BufReader, Write};

use args::{Args, Malformed, SLOTS, parse_i64};
use print::{Failure, Fnv};
use wasi::keyvalue::atomics::{self, Cas, CasError};
use wasi::keyvalue::batch;
use wasi::keyvalue::store::{self, Bucket, Error, KeyResponse};
use wasip2::cli::{stdin, stdout};

wit_bindgen::generate!({ path: "../../../wit", world: "imports" });

const LIST_ALL_PAGES_MAX: u64 = 100_000;

/// The text after the line number, or why there is none.
type Outcome = Result<String, Failure>;

struct Slot {
    bucket: Bucket,
    /// Where `list-next` goes on.
    cursor: Option<String>,
}

struct Probe {
    buckets: Vec<Option<Slot>>,
    attempts: Vec<Option<Cas>>,
    /// The handles of `open-many` and `cas-many`.
    kept_buckets: Vec<Bucket>,
    kept_attempts: Vec<Cas>,
}

impl Probe {
    fn new() -> Self {
        Probe {
            buckets: (0..SLOTS).map(|_| None).collect(),
            attempts: (0..SLOTS).map(|_| None).collect(),
            kept_buckets: Vec::new(),
            kept_attempts: Vec::new(),
        }
    }

    fn bucket(&self, slot: usize) -> Result<&Bucket, Failure> {
        self.buckets[slot]
            .as_ref()
            .map(|slot| &slot.bucket)
            .ok_or(Failure::EmptySlot)
    }

    fn attempt(&self, slot: usize) -> Result<&Cas, Failure> {
        self.attempts[slot].as_ref().ok_or(Failure::EmptySlot)
    }

    /// Runs one line. `out` is for lines that must leave before the command is done.
    fn run(&mut self, line: &[u8], out: &mut impl Write) -> io::Result<Outcome> {
        let (command, mut args) = Args::split(line);
        let args = &mut args;
        Ok(match command {
            b"open" => self.open(args),
            b"drop" => self.drop(args),
            b"get" => self.get(args),
            b"set" => self.set(args),
            b"delete" => self.delete(args),
            b"exists" => self.exists(args),
            b"list" => self.list(args),
            b"list-all" => self.list_all(args),
            b"list-next" => self.list_next(args),
            b"increment" => self.increment(args),
            b"cas-new" => self.cas_new(args),
            b"cas-current" => self.cas_current(args),
            b"cas-swap" => self.cas_swap(args),
            b"cas-drop" => self.cas_drop(args),
            b"get-many" => self.get_many(args),
            b"set-many" => self.set_many(args),
            b"delete-many" => self.delete_many(args),
            b"set-many-gen" => self.set_many_gen(args),
            b"delete-many-gen" => self.delete_many_gen(args),
            b"get-many-gen" => self.get_many_gen(args),
            b"set-gen" => self.set_gen(args),
            b"set-acked" => return self.set_acked(args, out),
            b"inc-loop" => self.inc_loop(args),
            b"cas-loop" => self.cas_loop(args),
            b"swap-loop" => self.swap_loop(args),
            b"open-many" => self.open_many(args),
            b"cas-many" => self.cas_many(args),
            b"drop-many" => self.drop_many(args),
            b"badkey" => self.badkey(args),
            b"echo" => echo(args),
            b"spin" => spin(args),
            b"trap" => trap(args),
            _ => Err(Malformed.into()),
        })
    }
}

/// One key.
impl Probe {
    fn open(&mut self, args: &mut Args) -> Outcome {
        let (slot, name) = (args.slot()?, args.text()?);
        args.end()?;
        let bucket = store::open(&name)?;
        self.buckets[slot] = Some(Slot {
            bucket,
            cursor: None,
        });
        Ok("ok".into())
    }

    fn drop(&mut self, args: &mut Args) -> Outcome {
        let slot = args.slot()?;
        args.end()?;
        self.buckets[slot].take().ok_or(Failure::EmptySlot)?;
        Ok("ok".into())
    }

    fn get(&mut self, args: &mut Args) -> Outcome {
        let (slot, key) = (args.slot()?, args.text()?);
        args.end()?;
        Ok(print::option(self.bucket(slot)?.get(&key)?))
    }

    fn set(&mut self, args: &mut Args) -> Outcome {
        let (slot, key, value) = (args.slot()?, args.text()?, args.value()?);
        args.end()?;
        self.bucket(slot)?.set(&key, &value)?;
        Ok("ok".into())
    }

    fn delete(&mut self, args: &mut Args) -> Outcome {
        let (slot, key) = (args.slot()?, args.text()?);
        args.end()?;
        self.bucket(slot)?.delete(&key)?;
        Ok("ok".into())
    }

    fn exists(&mut self, args: &mut Args) -> Outcome {
        let (slot, key) = (args.slot()?, args.text()?);
        args.end()?;
        Ok(self.bucket(slot)?.exists(&key)?.to_string())
    }

    fn increment(&mut self, args: &mut Args) -> Outcome {
        let (slot, key, delta) = (args.slot()?, args.text()?, args.i64()?);
        args.end()?;
        let sum = atomics::increment(self.bucket(slot)?, &key, delta)?;
        Ok(format!("ok {sum}"))
    }

    /// A Rust string cannot hold the key; only the twin in C makes the call.
    fn badkey(&mut self, args: &mut Args) -> Outcome {
        let slot = args.slot()?;
        args.end()?;
        self.bucket(slot)?;
        Ok("unsupported".into())
    }
}

/// Listing.
impl Probe {
    fn list(&mut self, args: &mut Args) -> Outcome {
        let (slot, cursor) = (args.slot()?, args.cursor()?);
        args.end()?;
        self.page(slot, cursor)
    }

    fn list_next(&mut self, args: &mut Args) -> Outcome {
        let slot = args.slot()?;
        args.end()?;
        let cursor = self.buckets[slot]
            .as_ref()
            .ok_or(Failure::EmptySlot)?
            .cursor
            .clone();
        let cursor = cursor.ok_or(Failure::Text("no-cursor"))?;
        self.page(slot, Some(cursor))
    }

    fn page(&mut self, slot: usize, cursor: Option<String>) -> Outcome {
        let slot = self.buckets[slot].as_mut().ok_or(Failure::EmptySlot)?;
        let KeyResponse { keys, cursor } = slot.bucket.list_keys(cursor.as_deref())?;
        let mut line = format!("keys {}", keys.len());
        for key in &keys {
            line.push(' ');
            line += &print::text(key);
        }
        line += " cursor ";
        line += &match cursor.as_deref() {
            None => "-".into(),
            Some("-") => "%2D".into(),
            Some(cursor) => print::text(cursor),
        };
        slot.cursor = cursor;
        Ok(line)
    }

    fn list_all(&mut self, args: &mut Args) -> Outcome {
        let slot = args.slot()?;
        args.end()?;
        let bucket = self.bucket(slot)?;

        let mut keys = Vec::new();
        let mut cursor = None;
        let mut pages = 0;
        loop {
            if pages == LIST_ALL_PAGES_MAX {
                return Err(Failure::Text("runaway"));
            }
            let page = bucket.list_keys(cursor.as_deref())?;
            pages += 1;
            keys.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }

        keys.sort();
        let mut hash = Fnv::new();
        keys.iter().for_each(|key| hash.item(key.as_bytes()));
        let dup = if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            " dup"
        } else {
            ""
        };
        Ok(format!(
            "keys {} pages {pages} hash {hash}{dup}",
            keys.len()
        ))
    }
}

/// Compare-and-swap.
impl Probe {
    fn cas_new(&mut self, args: &mut Args) -> Outcome {
        let (slot, bucket, key) = (args.slot()?, args.slot()?, args.text()?);
        args.end()?;
        let cas = Cas::new(self.bucket(bucket)?, &key)?;
        self.attempts[slot] = Some(cas);
        Ok("ok".into())
    }

    fn cas_current(&mut self, args: &mut Args) -> Outcome {
        let slot = args.slot()?;
        args.end()?;
        Ok(print::option(self.attempt(slot)?.current()?))
    }

    fn cas_swap(&mut self, args: &mut Args) -> Outcome {
        let (slot, value) = (args.slot()?, args.value()?);
        args.end()?;
        let cas = self.attempts[slot].take().ok_or(Failure::EmptySlot)?;
        Ok(match atomics::swap(cas, &value) {
            Ok(()) => "ok".into(),
            Err(CasError::CasFailed(fresh)) => {
                self.attempts[slot] = Some(fresh);
                "cas-failed".into()
            }
            Err(CasError::StoreError(error)) => format!("store-error {}", print::error(&error)),
        })
    }

    fn cas_drop(&mut self, args: &mut Args) -> Outcome {
        let slot = args.slot()?;
        args.end()?;
        self.attempts[slot].take().ok_or(Failure::EmptySlot)?;
        Ok("ok".into())
    }
}

/// Batches.
impl Probe {
    fn get_many(&mut self, args: &mut Args) -> Outcome {
        let (slot, keys) = (args.slot()?, args.texts()?);
        let pairs = batch::get_many(self.bucket(slot)?, &keys)?;
        let mut line = format!("ok {}", pairs.len());
        for pair in &pairs {
            line += " ";
            line += &match pair {
                Some((key, value)) => format!("{}={}", print::text(key), print::value(value)),
                None => "-".into(),
            };
        }
        Ok(line)
    }

    fn set_many(&mut self, args: &mut Args) -> Outcome {
        let (slot, pairs) = (args.slot()?, args.pairs()?);
        batch::set_many(self.bucket(slot)?, &pairs)?;
        Ok("ok".into())
    }

    fn delete_many(&mut self, args: &mut Args) -> Outcome {
        let (slot, keys) = (args.slot()?, args.texts()?);
        batch::delete_many(self.bucket(slot)?, &keys)?;
        Ok("ok".into())
    }

    fn set_many_gen(&mut self, args: &mut Args) -> Outcome {
        let (slot, keys, value) = (args.slot()?, args.run()?, args.value()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        let pairs: Vec<_> = keys.map(|key| (key, value.clone())).collect();
        batch::set_many(bucket, &pairs)?;
        Ok("ok".into())
    }

    fn delete_many_gen(&mut self, args: &mut Args) -> Outcome {
        let (slot, keys) = (args.slot()?, args.run()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        batch::delete_many(bucket, &keys.collect::<Vec<_>>())?;
        Ok("ok".into())
    }

    fn get_many_gen(&mut self, args: &mut Args) -> Outcome {
        let (slot, keys) = (args.slot()?, args.run()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        let pairs = batch::get_many(bucket, &keys.collect::<Vec<_>>())?;
        let mut found = 0;
        let mut hash = Fnv::new();
        for (key, value) in pairs.iter().flatten() {
            found += 1;
            hash.item(key.as_bytes());
            hash.item(value);
        }
        Ok(format!("ok {} found {found} hash {hash}", pairs.len()))
    }
}

/// Loops. A failure names the round in which it happened.
impl Probe {
    fn set_gen(&mut self, args: &mut Args) -> Outcome {
        let (slot, keys, value) = (args.slot()?, args.run()?, args.value()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        for (key, i) in keys.zip(0..) {
            bucket.set(&key, &value).map_err(|e| Failure::at(i, e))?;
        }
        Ok("ok".into())
    }

    fn set_acked(&mut self, args: &mut Args, out: &mut impl Write) -> io::Result<Outcome> {
        let mut taken = || {
            let (slot, prefix, count) = (args.slot()?, args.text()?, args.u64()?);
            args.end()?;
            Ok((self.bucket(slot)?, prefix, count))
        };
        let (bucket, prefix, count) = match taken() {
            Ok(taken) => taken,
            Err(failure) => return Ok(Err(failure)),
        };
        for i in 0..count {
            if let Err(error) = bucket.set(&format!("{prefix}{i}"), i.to_string().as_bytes()) {
                return Ok(Err(Failure::at(i, error)));
            }
            write_line(out, &format!("acked {i}"))?;
        }
        Ok(Ok("ok".into()))
    }

    fn inc_loop(&mut self, args: &mut Args) -> Outcome {
        let (slot, key, delta, count) = (args.slot()?, args.text()?, args.i64()?, args.u64()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        let mut last = 0;
        let mut monotonic = true;
        for i in 0..count {
            let sum = atomics::increment(bucket, &key, delta).map_err(|e| Failure::at(i, e))?;
            if i > 0 && (delta > 0 && sum <= last || delta < 0 && sum >= last) {
                monotonic = false;
            }
            last = sum;
        }
        Ok(format!(
            "ok {last}{}",
            if monotonic { "" } else { " not-monotonic" }
        ))
    }

    fn cas_loop(&mut self, args: &mut Args) -> Outcome {
        let (slot, key, count) = (args.slot()?, args.text()?, args.u64()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        for i in 0..count {
            let mut cas = Cas::new(bucket, &key).map_err(|e| Failure::at(i, e))?;
            loop {
                let number = match cas.current().map_err(|e| Failure::at(i, e))? {
                    Some(value) => parse_i64(&value),
                    None => Some(0),
                };
                let next = number.and_then(|number| number.checked_add(1));
                let next = next.ok_or(Failure::TextAt(i, "not-a-number"))?;
                match atomics::swap(cas, next.to_string().as_bytes()) {
                    Ok(()) => break,
                    Err(CasError::CasFailed(fresh)) => cas = fresh,
                    Err(CasError::StoreError(error)) => return Err(Failure::at(i, error)),
                }
            }
        }
        Ok(format!("ok {count}"))
    }

    fn swap_loop(&mut self, args: &mut Args) -> Outcome {
        let (slot, key, count) = (args.slot()?, args.text()?, args.u64()?);
        args.end()?;
        let bucket = self.bucket(slot)?;
        for i in 0..count {
            let cas = Cas::new(bucket, &key).map_err(|e| Failure::at(i, e))?;
            cas.current().map_err(|e| Failure::at(i, e))?;
            match atomics::swap(cas, b"swapped") {
                Ok(()) => {}
                Err(CasError::CasFailed(_)) => return Err(Failure::TextAt(i, "cas-failed")),
                Err(CasError::StoreError(error)) => return Err(Failure::at(i, error)),
            }
        }
        Ok(format!("ok {count}"))
    }

    fn open_many(&mut self, args: &mut Args) -> Outcome {
        let (count, name) = (args.u64()?, args.text()?);
        args.end()?;
        for i in 0..count {
            let bucket = store::open(&name).map_err(|e| Failure::at(i, e))?;
            self.kept_buckets.push(bucket);
        }
        Ok(format!("ok {count}"))
    }

    fn cas_many(&mut self, args: &mut Args) -> Outcome {
        let (count, slot, key) = (args.u64()?, args.slot()?, args.text()?);
        args.end()?;
        self.bucket(slot)?;
        for i in 0..count {
            let cas = Cas::new(self.bucket(slot)?, &key).map_err(|e| Failure::at(i, e))?;
            self.kept_attempts.push(cas);
        }
        Ok(format!("ok {count}"))
    }

    fn drop_many(&mut self, args: &mut Args) -> Outcome {
        args.end()?;
        self.kept_attempts = Vec::new();
        self.kept_buckets = Vec::new();
        Ok("ok".into())
    }
}

// The guest itself.

fn echo(args: &mut Args) -> Outcome {
    let bytes = args.bytes()?;
    args.end()?;
    Ok(print::encode(&bytes))
}

fn spin(args: &mut Args) -> Outcome {
    args.end()?;
    loop {
        std::hint::spin_loop();
    }
}

fn trap(args: &mut Args) -> Outcome {
    args.end()?;
    #[cfg(target_arch = "wasm32")]
    std::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

fn write_line(out: &mut impl Write, line: &str) -> io::Result<()> {
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn run_script(input: impl io::Read, out: &mut impl Write) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut probe = Probe::new();
    let mut line = Vec::new();
    for line_number in 1_u64.. {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        if line.is_empty() || line[0] == b';' {
            continue;
        }
        let result = match probe.run(line, out)? {
            Ok(text) => text,
            Err(failure) => format!("err {failure}"),
        };
        write_line(out, &format!("{line_number} {result}"))?;
    }
    Ok(())
}

struct Run;

impl wasip2::exports::cli::run::Guest for Run {
    fn run() -> Result<(), ()> {
        run_script(stdin::get_stdin(), &mut stdout::get_stdout()).map_err(|_| ())
    }
}

wasip2::cli::command::export!(Run);
