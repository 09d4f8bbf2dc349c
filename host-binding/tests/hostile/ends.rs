//! Guests that die, or never do: in the middle of a sequence of calls, inside the host's own call of their memory, or not at all.

use crate::cases;
use crate::guest::{End, Host, repeat};

fn with_bucket(body: &str) -> String {
    format!("(local.set $b (call $main)) (if (call $set_ (local.get $b) @k @text) (then (unreachable))) {body}")
}

/// Ends a guest after a few ticks.
#[track_caller]
fn cut_off(body: &str, realloc: &'static str) {
    let mut host = Host::new().realloc(realloc);
    host.ticks_max = 6;
    host.run(body, End::Traps("interrupt"), &[]);
}

cases! {
    dies_between_two_sets: Traps("unreachable"), [], with_bucket("(drop (call $set_ (local.get $b) @l @text)) (unreachable)");
    dies_holding_an_attempt: Traps("unreachable"), [], with_bucket("(drop (call $attempt_ (local.get $b) @k)) (unreachable)");
    divides_by_nothing: Traps("divide"), [], with_bucket("(i32.div_u #1 (local.get $x))");
    runs_out_of_stack: Traps("stack"), [], format!("(func $deep (param i32) (result i32) (i32.add #1 (call $deep (local.get 0)))) RUN {}", with_bucket("(call $deep #0)"));
    runs_out_of_stack_around_a_call: Traps("stack"), [], format!(
        "(func $deep (param i32) (result i32) (drop (call $get_ (local.get 0) @k)) (i32.add #1 (call $deep (local.get 0)))) RUN {}",
        with_bucket("(call $deep (local.get $b))"));
    reads_beyond_its_memory: Traps("out of bounds"), [], with_bucket("(i32.load #0x7fffffff)");
    calls_through_an_empty_table: Traps(""), [], format!("(table 1 funcref) (type $f (func (result i32))) RUN {}", with_bucket("(call_indirect (type $f) #0)"));
    takes_all_the_memory_it_can_and_goes_on: Returns(0), [], with_bucket(
        "(loop $more (br_if $more (i32.ne #-1 (memory.grow #16)))) (call $set_ (local.get $b) @l @text)");
    has_no_memory_for_an_answer: Traps("unreachable"), [], with_bucket(
        "(if (call $set_ (local.get $b) @l #0x80000 #0x80000) (then (return #1)))
         (loop $more (call $get (local.get $b) @l #16) (br $more)) #0");
}

/// A `cabi_realloc` that does this.
macro_rules! realloc {
    ($($name:ident: $end:expr, $realloc:expr;)*) => {
        $(
            #[test]
            fn $name() {
                const REALLOC: &str = concat!(
                    "(func (export \"forget\")) (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) ", $realloc, ")"
                );
                Host::new().realloc(REALLOC).run(&with_bucket("(call $get_ (local.get $b) @k)"), $end, &[]);
            }
        )*
    };
}

realloc! {
    allocates_nowhere: End::Traps(""), "(i32.const -1)";
    allocates_at_the_end_of_memory: End::Traps(""), "(i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1))";
    allocates_over_the_answer: End::Either, "(i32.const 16)";
    allocates_at_nothing: End::Either, "(i32.const 0)";
    dies_while_it_allocates: End::Traps("unreachable"), "(unreachable)";
    runs_out_of_memory_while_it_allocates: End::Either, "(loop (br_if 0 (i32.ne (i32.const -1) (memory.grow (i32.const 64))))) (memory.grow (i32.const 1))";
}

#[test]
fn never_returns() {
    cut_off(&with_bucket("(loop $for_ever (br $for_ever)) #0"), crate::guest::REALLOC);
}

#[test]
fn never_stops_calling() {
    cut_off(
        &with_bucket("(loop $for_ever (drop (call $get_ (local.get $b) @k)) (br $for_ever)) #0"),
        crate::guest::REALLOC,
    );
}

#[test]
fn never_stops_writing() {
    let writes = "(loop $for_ever (drop (call $set_ (local.get $b) @k @text)) (br $for_ever)) #0";
    cut_off(&with_bucket(writes), crate::guest::REALLOC);
}

#[test]
fn never_stops_opening_what_it_may_not() {
    cut_off("(loop $for_ever (drop (call $open_ @none)) (br $for_ever)) #0", crate::guest::REALLOC);
}

#[test]
fn never_returns_from_allocating() {
    const REALLOC: &str =
        "(func (export \"forget\")) (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32)
        (loop $for_ever (br $for_ever)) (i32.const 0))";
    cut_off(&with_bucket("(call $get_ (local.get $b) @k)"), REALLOC);
}

#[test]
fn a_hundred_guests_that_die_leave_nothing_behind() {
    let host = Host::new();
    let component = crate::guest::compile(
        &with_bucket(&format!(
            "{} (drop (call $attempt_ (local.get $b) @k)) (unreachable)",
            repeat(50, "(drop (call $open_ @main))")
        )),
        crate::guest::REALLOC,
    );
    let (_, held) = crate::memory::highest(|| {
        for _ in 0..100 {
            host.call(&component, &host.ctx).0.unwrap_err();
        }
    });
    assert!(held < 4 << 20, "{held} bytes");
    host.check(&std::collections::BTreeSet::new());
}
