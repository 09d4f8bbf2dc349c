//! A hostile guest as a component, and the host that it must not hurt.
//!
//! The component: a module with the memory and `cabi_realloc`, another with the body of the case, which may call
//! all of `wasi:keyvalue` and `note`, by which it shows the host each text that it is given.
//!
//! In a body `#7` is `(i32.const 7)`, `##7` is `(i64.const 7)`, and `@k` is address and length of a text of [`TEXTS`]. Answers are
//! written at `RET`; the helpers of [`PRELUDE`] turn them into classes: 0 ok, 1 no-such-store, 2 access-denied, 3 other.

use crate::memory;
use kvasi_wasmtime::backend::{Backend, LocalBucket, Memory, PageBounds};
use kvasi_wasmtime::{
    Account, Code, Limits, Metered, Rights, Usage, WasiKeyValueCtx, WasiKeyValueCtxBuilder, WasiKeyValueCtxView,
    WasiKeyValueView,
};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wasmtime::component::{Component, Linker, ResourceTable, WasmStr};
use wasmtime::{Engine, OptLevel, Store, StoreLimits, StoreLimitsBuilder};

/// What the host may hold for a guest at the highest, besides what the guest has stored.
const OVERHEAD_BYTES_MAX: i64 = 16 << 20;
/// What the guest may store.
pub(crate) const QUOTA: Usage = Usage { bytes: 4 << 20, keys: 5_000 };
/// What a guest's own memory may grow to.
const GUEST_BYTES_MAX: usize = 96 << 20;
/// Ticks of the epoch, and how many of them a guest may run.
const TICK: Duration = Duration::from_millis(50);
const TICKS_MAX: u64 = 600;

/// Texts that stand in every guest's memory.
const TEXTS: &[(&str, &str)] = &[
    ("main", "main"),
    ("k", "k"),
    ("l", "l"),
    ("read", "read-only"),
    ("write", "write-only"),
    ("count", "atomics-only"),
    ("none", "withheld"),
    ("other", "other"),
    ("absent", "absent"),
    ("number", "41"),
    ("max", "9223372036854775807"),
    ("min", "-9223372036854775808"),
    ("text", "not a number"),
    ("u64", "18446744073709551615"),
];
const TEXTS_AT: usize = 1024;

/// Memory that grows as it is asked to, never given back.
pub(crate) const REALLOC: &str = r#"
    (global $next (mut i32) (i32.const 0x100000))
    (func (export "cabi_realloc") (param $old i32) (param $old_len i32) (param $align i32) (param $len i32) (result i32)
        (local $at i32)
        (global.set $next (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (local.set $at (global.get $next))
        (global.set $next (i32.add (global.get $next) (local.get $len)))
        (if (i32.gt_u (global.get $next) (i32.mul (memory.size) (i32.const 65536)))
            (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get $len) (i32.const 65536)))))
                (then (unreachable)))))
        (local.get $at))
    ;; What was handed out so far may be handed out again.
    (func (export "forget") (global.set $next (i32.const 0x100000)))"#;

const PRELUDE: &str = r#"
    (func $failed (param $at i32) (result i32)
        (if (i32.eq (i32.load8_u (local.get $at)) #2)
            (then (call $note (i32.load offset=4 (local.get $at)) (i32.load offset=8 (local.get $at)))))
        (i32.add #1 (i32.load8_u (local.get $at))))
    (func $class (result i32)
        (call $forget)
        (if (result i32) (i32.load8_u #16) (then (call $failed #20)) (else #0)))
    (func $open_ (param i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) #16) (call $class))
    ;; The handle that an open or an attempt has given.
    (func $given (result i32) (i32.load #20))
    (func $main (result i32)
        (if (call $open_ @main) (then (unreachable))) (call $given))
    (func $get_ (param i32 i32 i32) (result i32)
        (call $get (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    ;; Whether the last get found something, where it is and how long.
    (func $found (result i32) (i32.load8_u #20))
    (func $at (result i32) (i32.load #24))
    (func $len (result i32) (i32.load #28))
    (func $set_ (param i32 i32 i32 i32 i32) (result i32)
        (call $set (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) #16) (call $class))
    (func $delete_ (param i32 i32 i32) (result i32)
        (call $delete (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    (func $exists_ (param i32 i32 i32) (result i32)
        (call $exists (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    (func $list_ (param i32 i32 i32 i32) (result i32)
        (call $list (local.get 0) (local.get 1) (local.get 2) (local.get 3) #16) (call $class))
    ;; Of the last page: keys, whether a cursor is there, and the cursor.
    (func $page (result i32) (i32.load #24))
    (func $more (result i32) (i32.load8_u #28))
    (func $cursor (result i32 i32) (i32.load #32) (i32.load #36))
    (func $attempt_ (param i32 i32 i32) (result i32)
        (call $attempt (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    (func $current_ (param i32) (result i32)
        (call $current (local.get 0) #16) (call $class))
    ;; 0 done, 4 lost and a fresh handle at `lost`, else the class.
    (func $swap_ (param i32 i32 i32) (result i32)
        (call $swap (local.get 0) (local.get 1) (local.get 2) #16)
        (call $forget)
        (if (result i32) (i32.load8_u #16)
            (then (if (result i32) (i32.load8_u #20) (then #4) (else (call $failed #24))))
            (else #0)))
    (func $lost (result i32) (i32.load #24))
    (func $increment_ (param i32 i32 i32 i64) (result i32)
        (call $increment (local.get 0) (local.get 1) (local.get 2) (local.get 3) #16)
        (call $forget)
        (if (result i32) (i32.load8_u #16) (then (call $failed #24)) (else #0)))
    (func $sum (result i64) (i64.load #24))
    (func $get_many_ (param i32 i32 i32) (result i32)
        (call $get_many (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    (func $set_many_ (param i32 i32 i32) (result i32)
        (call $set_many (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    (func $delete_many_ (param i32 i32 i32) (result i32)
        (call $delete_many (local.get 0) (local.get 1) (local.get 2) #16) (call $class))
    ;; A list of $n strings at $to, each of $len bytes at $text; of $n pairs if $pairs, whose values are the same bytes.
    (func $strings (param $to i32) (param $n i32) (param $text i32) (param $len i32) (param $pairs i32)
        (loop $next
            (i32.store (local.get $to) (local.get $text))
            (i32.store offset=4 (local.get $to) (local.get $len))
            (local.set $to (i32.add (local.get $to) #8))
            (if (local.get $pairs) (then
                (i32.store (local.get $to) (local.get $text))
                (i32.store offset=4 (local.get $to) (local.get $len))
                (local.set $to (i32.add (local.get $to) #8))))
            (br_if $next (local.tee $n (i32.sub (local.get $n) #1)))))
    ;; $n in eight letters at $at: a key of its own for each number.
    (func $name (param $at i32) (param $n i32)
        (local $i i32)
        (loop $next
            (i32.store8 (i32.add (local.get $at) (local.get $i)) (i32.add #97 (i32.and (local.get $n) #15)))
            (local.set $n (i32.shr_u (local.get $n) #4))
            (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) #1)) #8))))
    (func $grow (param $bytes i32)
        (if (i32.eq #-1 (memory.grow (i32.shr_u (local.get $bytes) #16))) (then (unreachable))))
    (func $random (result i32)
        (global.set $state (i64.add (i64.mul (global.get $state) ##6364136223846793005) ##1442695040888963407))
        (i32.wrap_i64 (i64.shr_u (global.get $state) ##33)))
    (global $state (mut i64) ##42)"#;

/// The imports of a guest: interface, name, parameters of the core function.
const CALLS: &[(&str, &str, &str, &str)] = &[
    ("store", "open", "open", "i32 i32 i32"),
    ("store", "[method]bucket.get", "get", "i32 i32 i32 i32"),
    ("store", "[method]bucket.set", "set", "i32 i32 i32 i32 i32 i32"),
    ("store", "[method]bucket.delete", "delete", "i32 i32 i32 i32"),
    ("store", "[method]bucket.exists", "exists", "i32 i32 i32 i32"),
    ("store", "[method]bucket.list-keys", "list", "i32 i32 i32 i32 i32"),
    ("atomics", "[static]cas.new", "attempt", "i32 i32 i32 i32"),
    ("atomics", "[method]cas.current", "current", "i32 i32"),
    ("atomics", "swap", "swap", "i32 i32 i32 i32"),
    ("atomics", "increment", "increment", "i32 i32 i32 i64 i32"),
    ("batch", "get-many", "get_many", "i32 i32 i32 i32"),
    ("batch", "set-many", "set_many", "i32 i32 i32 i32"),
    ("batch", "delete-many", "delete_many", "i32 i32 i32 i32"),
];

const INTERFACES: &str = r#"
    (import "wasi:keyvalue/store@0.2.0-draft2" (instance $store
        (type $error (variant (case "no-such-store") (case "access-denied") (case "other" string)))
        (export "error" (type $e (eq $error)))
        (type $page (record (field "keys" (list string)) (field "cursor" (option string))))
        (export "key-response" (type $p (eq $page)))
        (export "bucket" (type $bucket (sub resource)))
        (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $e)))))
        (export "[method]bucket.get" (func (param "self" (borrow $bucket)) (param "key" string)
            (result (result (option (list u8)) (error $e)))))
        (export "[method]bucket.set" (func (param "self" (borrow $bucket)) (param "key" string)
            (param "value" (list u8)) (result (result (error $e)))))
        (export "[method]bucket.delete" (func (param "self" (borrow $bucket)) (param "key" string)
            (result (result (error $e)))))
        (export "[method]bucket.exists" (func (param "self" (borrow $bucket)) (param "key" string)
            (result (result bool (error $e)))))
        (export "[method]bucket.list-keys" (func (param "self" (borrow $bucket)) (param "cursor" (option string))
            (result (result $p (error $e)))))))
    (alias export $store "bucket" (type $bucket))
    (alias export $store "error" (type $error))
    (import "wasi:keyvalue/atomics@0.2.0-draft2" (instance $atomics
        (alias outer 1 $bucket (type $bucket')) (export "bucket" (type $bucket (eq $bucket')))
        (alias outer 1 $error (type $error')) (export "error" (type $e (eq $error')))
        (export "cas" (type $cas (sub resource)))
        (type $lost (variant (case "store-error" $e) (case "cas-failed" (own $cas))))
        (export "cas-error" (type $ce (eq $lost)))
        (export "[static]cas.new" (func (param "bucket" (borrow $bucket)) (param "key" string)
            (result (result (own $cas) (error $e)))))
        (export "[method]cas.current" (func (param "self" (borrow $cas)) (result (result (option (list u8)) (error $e)))))
        (export "increment" (func (param "bucket" (borrow $bucket)) (param "key" string) (param "delta" s64)
            (result (result s64 (error $e)))))
        (export "swap" (func (param "cas" (own $cas)) (param "value" (list u8)) (result (result (error $ce)))))))
    (alias export $atomics "cas" (type $cas))
    (import "wasi:keyvalue/batch@0.2.0-draft2" (instance $batch
        (alias outer 1 $bucket (type $bucket')) (export "bucket" (type $bucket (eq $bucket')))
        (alias outer 1 $error (type $error')) (export "error" (type $e (eq $error')))
        (export "get-many" (func (param "bucket" (borrow $bucket)) (param "keys" (list string))
            (result (result (list (option (tuple string (list u8)))) (error $e)))))
        (export "set-many" (func (param "bucket" (borrow $bucket)) (param "key-values" (list (tuple string (list u8))))
            (result (result (error $e)))))
        (export "delete-many" (func (param "bucket" (borrow $bucket)) (param "keys" (list string))
            (result (result (error $e)))))))
    (import "note" (func $note (param "text" string)))"#;

/// `#7`, `##7` and `@k` in full.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['#', '@', '"']) {
        out.push_str(&rest[..at]);
        let (mark, after) = rest[at..].split_at(1);
        if mark == "\"" {
            let end = after.find('"').unwrap() + 1;
            out.push_str(&rest[at..=at + end]);
            rest = &after[end..];
            continue;
        }
        let (ty, after) = after.strip_prefix('#').map_or(("i32", after), |after| ("i64", after));
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(after.len());
        let (word, after) = after.split_at(end);
        if mark == "#" {
            out += &format!("({ty}.const {word})");
        } else {
            let (at, len) = text_at(word);
            out += &format!("(i32.const {at}) (i32.const {len})");
        }
        rest = after;
    }
    out + rest
}

fn text_at(name: &str) -> (usize, usize) {
    let mut at = TEXTS_AT;
    for (known, text) in TEXTS {
        if *known == name {
            return (at, text.len());
        }
        at += text.len();
    }
    panic!("no text {name:?}")
}

/// Does `body` so many times; `$i` counts down from `times`.
pub(crate) fn repeat(times: u32, body: &str) -> String {
    format!("(local.set $i #{times}) (loop $again {body} (br_if $again (local.tee $i (i32.sub (local.get $i) #1))))")
}

/// The component around a body: what the function `run` does, which answers an `i32`. `realloc` stands in the module of the memory.
pub(crate) fn component(body: &str, realloc: &str) -> String {
    // A body may bring functions of its own in front.
    let (functions, body) = body.split_once("RUN").unwrap_or(("", body));
    let texts: String = TEXTS.iter().map(|(_, text)| *text).collect();
    let lower = |(interface, name, core, _): &(&str, &str, &str, &str)| {
        format!(
            "(alias export ${interface} \"{name}\" (func ${core}))
             (core func ${core} (canon lower (func ${core}) (memory (core memory $m \"memory\")) (realloc (core func $m \"cabi_realloc\"))))"
        )
    };
    let lowered: String = CALLS.iter().map(lower).collect();
    let exports: String = CALLS.iter().map(|(_, _, core, _)| format!("(export \"{core}\" (func ${core}))")).collect();
    let imports: String = CALLS
        .iter()
        .map(|(_, _, core, params)| format!("(import \"kv\" \"{core}\" (func ${core} (param {params})))"))
        .collect();
    let prelude = expand(PRELUDE);
    let (functions, body) = (expand(functions), expand(body));
    format!(
        r#"(component {INTERFACES}
        (core module $memory (memory (export "memory") 32) {realloc})
        (core instance $m (instantiate $memory))
        {lowered}
        (core func $note (canon lower (func $note) (memory (core memory $m "memory"))))
        (core func $drop_bucket (canon resource.drop $bucket))
        (core func $drop_cas (canon resource.drop $cas))
        (core module $guest
            (import "m" "memory" (memory 1))
            (import "m" "forget" (func $forget))
            (import "kv" "note" (func $note (param i32 i32)))
            (import "kv" "drop_bucket" (func $drop_bucket (param i32)))
            (import "kv" "drop_cas" (func $drop_cas (param i32)))
            {imports}
            (data (i32.const {TEXTS_AT}) "{texts}")
            {prelude} {functions}
            (func (export "run") (result i32) (local $i i32) (local $j i32) (local $b i32) (local $c i32) (local $x i32)
                {body}))
        (core instance $g (instantiate $guest
            (with "m" (instance $m))
            (with "kv" (instance {exports} (export "note" (func $note))
                (export "drop_bucket" (func $drop_bucket)) (export "drop_cas" (func $drop_cas))))))
        (func (export "run") (result u32) (canon lift (core func $g "run"))))"#
    )
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this answer.
    Returns(u32),
    /// By a trap whose text has this in it.
    Traps(&'static str),
    /// However it likes, as long as the host lives on.
    Either,
}

struct State {
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
    limits: StoreLimits,
    told: BTreeSet<String>,
}

impl WasiKeyValueView for State {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

/// One engine for all, whose clock a thread of its own moves.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let mut config = wasmtime::Config::new();
        config.concurrency_support(false).epoch_interruption(true).cranelift_opt_level(OptLevel::None);
        let engine = Engine::new(&config).unwrap();
        let clock = engine.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(TICK);
                clock.increment_epoch();
            }
        });
        engine
    })
}

/// A host with a bucket under a quota, some grants on it with fewer rights, and a neighbour's bucket in the same store.
pub(crate) struct Host {
    pub(crate) bucket: Arc<dyn LocalBucket>,
    pub(crate) account: Account,
    pub(crate) ctx: WasiKeyValueCtx,
    /// Epoch ticks that a guest may run.
    pub(crate) ticks_max: u64,
    neighbour: WasiKeyValueCtx,
    realloc: &'static str,
}

/// The limits that hold for a hostile guest.
pub(crate) fn limits() -> Limits {
    Limits {
        value_bytes_max: 1 << 20,
        batch_keys_max: 1_000,
        batch_bytes_max: 2 << 20,
        reply_bytes_max: 2 << 20,
        page_keys_max: 100,
        open_buckets_max: 64,
        cas_handles_max: 64,
        ..Limits::default()
    }
}

impl Host {
    pub(crate) fn new() -> Host {
        Host::with(|builder| builder)
    }

    pub(crate) fn with(configure: impl FnOnce(WasiKeyValueCtxBuilder) -> WasiKeyValueCtxBuilder) -> Host {
        let store = Memory::new().unwrap();
        let account = Account::new(QUOTA);
        let metered = Metered::new(store.bucket("main").unwrap(), [account.clone()]).unwrap();
        let bucket: Arc<dyn LocalBucket> = Arc::new(metered);
        let builder = WasiKeyValueCtx::builder()
            .limits(limits())
            .grant("main", bucket.clone(), Rights::ALL)
            .grant("read-only", bucket.clone(), Rights::READ)
            .grant("write-only", bucket.clone(), Rights::WRITE)
            .grant("atomics-only", bucket.clone(), Rights::ATOMICS)
            .grant("other", store.bucket("other").unwrap(), Rights::ALL)
            .grant("\u{e9}", store.bucket("nfc").unwrap(), Rights::ALL)
            .withhold("withheld");
        let neighbour =
            WasiKeyValueCtx::builder().grant("main", store.bucket("neighbour").unwrap(), Rights::ALL).build();
        let host = Host {
            bucket,
            account,
            ctx: configure(builder).build(),
            ticks_max: TICKS_MAX,
            neighbour,
            realloc: REALLOC,
        };
        host.visit_neighbour(1);
        host
    }

    /// With another `cabi_realloc`.
    pub(crate) fn realloc(mut self, realloc: &'static str) -> Host {
        self.realloc = realloc;
        self
    }

    /// Runs a guest and asserts all that must hold of every one.
    #[track_caller]
    pub(crate) fn run(&self, body: &str, end: End, told: &[&str]) {
        let component = compile(body, self.realloc);
        let ((ended, texts), held) = memory::highest(|| self.call(&component, &self.ctx));
        match end {
            End::Returns(answer) => assert_eq!(ended.as_ref().ok(), Some(&answer), "{ended:?}, {texts:?}"),
            End::Traps(why) => {
                let trap = format!("{:?}", ended.as_ref().expect_err("a trap"));
                assert!(trap.contains(why), "no {why:?} in: {trap}");
            }
            End::Either => {}
        }
        assert_eq!(texts, told.iter().map(|text| (*text).to_owned()).collect(), "what the guest is told");
        assert!(held <= OVERHEAD_BYTES_MAX, "{held} bytes of host memory at the highest");
        self.check(&texts);
    }

    /// Nothing is over its bound, no text is of another kind, and the neighbour has all that is its own.
    #[track_caller]
    pub(crate) fn check(&self, texts: &BTreeSet<String>) {
        for text in texts {
            assert!(Code::ALL.iter().any(|code| code.text() == text), "{text:?} is on no list");
            assert!(!text.contains(['/', '\\', '\n', '\x1b']), "{text:?}");
        }
        let used = self.account.used();
        assert!(used.bytes <= QUOTA.bytes && used.keys <= QUOTA.keys, "{used:?}");
        assert_eq!(used, held(&*self.bucket), "the account says what is there");
        self.visit_neighbour(2);
    }

    /// Runs a guest; its answer and the texts that it was given.
    pub(crate) fn call(
        &self,
        component: &Component,
        ctx: &WasiKeyValueCtx,
    ) -> (wasmtime::Result<u32>, BTreeSet<String>) {
        call(component, ctx, self.ticks_max)
    }

    /// A guest that means no harm, on the same store: it finds what it has, and nothing else.
    #[track_caller]
    fn visit_neighbour(&self, visit: u32) {
        static NEIGHBOUR: OnceLock<Component> = OnceLock::new();
        let body = "(local.set $b (call $main))
            (drop (call $increment_ (local.get $b) @k ##1))
            (if (call $set_ (local.get $b) @l @text) (then (return #100)))
            (if (call $get_ (local.get $b) @l) (then (return #101)))
            (if (i32.ne (call $len) #12) (then (return #102)))
            (if (call $list_ (local.get $b) #0 #0 #0) (then (return #103)))
            (if (i32.ne (call $page) #2) (then (return #104)))
            (if (call $more) (then (return #105)))
            (call $increment_ (local.get $b) @k ##0) (drop)
            (i32.wrap_i64 (call $sum))";
        let component = NEIGHBOUR.get_or_init(|| compile(body, REALLOC));
        let (answer, texts) = self.call(component, &self.neighbour);
        assert_eq!(answer.unwrap(), visit, "the neighbour");
        assert!(texts.is_empty(), "{texts:?}");
    }
}

/// Compiles a guest.
pub(crate) fn compile(body: &str, realloc: &str) -> Component {
    let text = component(body, realloc);
    let bytes = wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"));
    Component::new(engine(), bytes).unwrap_or_else(|error| panic!("{error:?}"))
}

/// Runs a guest for so many ticks at the most.
pub(crate) fn call(
    component: &Component,
    ctx: &WasiKeyValueCtx,
    ticks_max: u64,
) -> (wasmtime::Result<u32>, BTreeSet<String>) {
    let limits = StoreLimitsBuilder::new().memory_size(GUEST_BYTES_MAX).table_elements(10_000).build();
    let state = State { keyvalue: ctx.clone(), table: ResourceTable::new(), limits, told: BTreeSet::new() };
    let mut store = Store::new(engine(), state);
    store.limiter(|state| &mut state.limits);
    store.set_epoch_deadline(ticks_max);
    kvasi_wasmtime::limit_store(&mut store);
    let run = linker().instantiate(&mut store, component).and_then(|instance| {
        let run = instance.get_typed_func::<(), (u32,)>(&mut store, "run")?;
        Ok(run.call(&mut store, ())?.0)
    });
    (run, store.into_data().told)
}

fn linker() -> &'static Linker<State> {
    static LINKER: OnceLock<Linker<State>> = OnceLock::new();
    LINKER.get_or_init(|| {
        let mut linker = Linker::<State>::new(engine());
        kvasi_wasmtime::add_to_linker_sync(&mut linker).unwrap();
        let note = |mut cx: wasmtime::StoreContextMut<'_, State>, (text,): (WasmStr,)| {
            let text = text.to_str(&cx)?.into_owned();
            cx.data_mut().told.insert(text);
            Ok(())
        };
        linker.root().func_wrap("note", note).unwrap();
        linker
    })
}

/// Runs a guest on a host that awaits it.
pub(crate) async fn call_async(component: &Component, ctx: &WasiKeyValueCtx) -> wasmtime::Result<u32> {
    static LINKER: OnceLock<Linker<State>> = OnceLock::new();
    let linker = LINKER.get_or_init(|| {
        let mut linker = Linker::<State>::new(engine());
        kvasi_wasmtime::add_to_linker_async(&mut linker).unwrap();
        linker.root().func_wrap("note", |_, (_,): (WasmStr,)| Ok(())).unwrap();
        linker
    });
    let limits = StoreLimitsBuilder::new().memory_size(GUEST_BYTES_MAX).build();
    let state = State { keyvalue: ctx.clone(), table: ResourceTable::new(), limits, told: BTreeSet::new() };
    let mut store = Store::new(engine(), state);
    store.limiter(|state| &mut state.limits);
    store.set_epoch_deadline(TICKS_MAX);
    kvasi_wasmtime::limit_store(&mut store);
    let instance = linker.instantiate_async(&mut store, component).await?;
    let run = instance.get_typed_func::<(), (u32,)>(&mut store, "run")?;
    Ok(run.call_async(&mut store, ()).await?.0)
}

/// What a bucket holds, by looking.
pub(crate) fn held(bucket: &dyn LocalBucket) -> Usage {
    let bounds = PageBounds { keys_max: 1_000, bytes_max: 1 << 20, entries_max: 1_000_000 };
    let mut held = Usage::default();
    let mut after: Option<bytes::Bytes> = None;
    loop {
        let page = bucket.list(after.as_deref(), bounds).unwrap();
        for key in &page.keys {
            let value = bucket.get(key).unwrap().map_or(0, |value| value.len());
            held = held + Usage { bytes: (key.len() + value) as u64, keys: 1 };
        }
        after = page.next;
        if after.is_none() {
            return held;
        }
    }
}
