//! Cases 40, 53 and 55 as far as one host shows them: limits at their edges, handles by the million, a back end that fails.

use super::guest::Language;
use super::target::Host;
use bytes::Bytes;
use kvasi_wasmtime::backend::{Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use kvasi_wasmtime::{Code, Error};

cases! {
    limit_53_key_at_its_edge
    limit_53_value_at_its_edge
    limit_53_a_million_opens_and_attempts
    limit_53_a_key_that_is_not_utf8_traps_that_guest_alone
    error_55_no_text_of_the_back_end_reaches_a_guest
}

fn limit_53_key_at_its_edge(host: &mut Host) {
    host.limit(|limits| limits.key_bytes_max = 10);
    let mut guest = host.guest();
    for (len, answer) in [(9, "ok"), (10, "ok"), (11, "err other(too-large)")] {
        guest.expect(&format!("set 0 {} v", "k".repeat(len)), answer);
    }
    let long = "k".repeat(11);
    for call in ["get 0", "exists 0", "delete 0", "cas-new 0 0", "get-many 0", "delete-many 0"] {
        guest.expect(&format!("{call} {long}"), "err other(too-large)");
    }
    guest.expect(&format!("increment 0 {long} 1"), "err other(too-large)");
    // Bytes count, not letters: four of three bytes each.
    guest.expect("set 0 %E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC v", "err other(too-large)");
}

fn limit_53_value_at_its_edge(host: &mut Host) {
    host.limit(|limits| {
        limits.value_bytes_max = 10;
        limits.batch_bytes_max = 22;
    });
    host.guest().script(
        "set 0 k @9 => ok
         set 0 k @10 => ok
         set 0 k @11 => err other(too-large)
         set-many 0 k=@11 => err other(too-large)
         set-many 0 a=@10 b=@10 => ok
         set-many 0 a=@10 bb=@10 => err other(too-large)
         cas-new 0 0 k => ok
         cas-swap 0 @11 => store-error other(too-large)",
    );
}

fn limit_53_a_million_opens_and_attempts(host: &mut Host) {
    let mut guest = host.guest();
    // One bucket is open already.
    guest.script(
        "open-many 1000000 main => err 1023 other(too-many-handles)
         cas-many 1000000 0 k => err 256 other(too-many-handles)
         set 0 k v => ok
         drop-many => ok
         open-many 1000 main => ok 1000
         cas-many 256 0 k => ok 256",
    );
    host.guest().expect("get 0 k", "some v");
}

fn limit_53_a_key_that_is_not_utf8_traps_that_guest_alone(host: &mut Host) {
    let mut neighbour = host.guest();
    let mut guest = host.guest();
    if host.language() != Language::Rust {
        guest.expect("badkey 0", "trap");
        guest.expect("get 0 k", "trap");
    } else {
        // A `&str` of Rust cannot be it.
        guest.expect("badkey 0", "unsupported");
    }
    neighbour.expect("get 0 k", "none");
    let mut trapping = host.guest();
    trapping.expect("set 0 k v", "ok");
    trapping.expect("trap", "trap");
    neighbour.expect("get 0 k", "some v");
}

/// A back end whose every call fails with what no guest may read.
struct Broken;

fn broken<R>() -> Result<R, Error> {
    Err(Error::with_detail(Code::Io, "/srv/tenants/b/000001.log on db7.internal: Permission denied (os error 13)"))
}

impl LocalBucket for Broken {
    fn identity(&self) -> &str {
        "broken"
    }
    fn get(&self, _: &str) -> Result<Option<Bytes>, Error> {
        broken()
    }
    fn exists(&self, _: &str) -> Result<bool, Error> {
        broken()
    }
    fn set(&self, _: &str, _: &[u8]) -> Result<(), Error> {
        broken()
    }
    fn set_with(&self, _: &str, _: &[u8], _: SetOptions) -> Result<bool, Error> {
        broken()
    }
    fn delete(&self, _: &str) -> Result<(), Error> {
        broken()
    }
    fn list(&self, _: Option<&[u8]>, _: PageBounds) -> Result<Page, Error> {
        broken()
    }
    fn increment(&self, _: &str, _: i64) -> Result<i64, Error> {
        broken()
    }
    fn observe(&self, key: &str) -> Result<Observed, Error> {
        if key == "seen" { Ok(Observed { value: None, guard: Guard::Absent }) } else { broken() }
    }
    fn swap(&self, _: &str, _: &Guard, _: &[u8]) -> Result<Swap, Error> {
        broken()
    }
    fn get_many(&self, _: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        broken()
    }
    fn set_many(&self, _: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        broken()
    }
    fn delete_many(&self, _: &[Key<'_>]) -> Result<(), Error> {
        broken()
    }
}

fn error_55_no_text_of_the_back_end_reaches_a_guest(host: &mut Host) {
    host.configure(|builder| builder.bucket("broken", Broken));
    host.guest().script(
        "open 1 broken => ok
         get 1 k => err other(io)
         exists 1 k => err other(io)
         set 1 k v => err other(io)
         delete 1 k => err other(io)
         list 1 - => err other(io)
         increment 1 k 1 => err other(io)
         get-many 1 k => err other(io)
         set-many 1 k=v => err other(io)
         delete-many 1 k => err other(io)
         get-many 1 => ok 0
         set-many 1 => ok
         delete-many 1 => ok
         cas-new 0 1 k => err other(io)
         cas-new 0 1 seen => ok
         cas-swap 0 v => store-error other(io)
         get 0 k => none",
    );
}
