//! Many instances at once: no sum is exceeded, no place is lost, and who means no harm goes on.

use crate::guest::{self, End, Host, QUOTA, REALLOC, compile, limits, repeat};
use kvasi_wasmtime::backend::{Backend, LocalBucket};
use kvasi_wasmtime::{Account, Limits, Metered, Rights, Usage, WasiKeyValueCtx};
use std::collections::BTreeSet;
use std::sync::Arc;

/// 64 instances of one component.
fn race(host: &Host, body: &str) -> Vec<(wasmtime::Result<u32>, BTreeSet<String>)> {
    let component = compile(body, REALLOC);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(|| host.call(&component, &host.ctx))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the host panicked")).collect()
    })
}

fn told(answers: &[(wasmtime::Result<u32>, BTreeSet<String>)]) -> BTreeSet<String> {
    answers.iter().flat_map(|(_, texts)| texts.clone()).collect()
}

#[test]
fn sixty_four_instances_that_fill_a_bucket_stay_within_its_quota() {
    let host = Host::new();
    let answers = race(&host, &format!(
        "(local.set $b (call $main)) {} (local.get $x)",
        repeat(120, "(call $name #0x8000 (call $random))
            (if (i32.eqz (call $set_ (local.get $b) #0x8000 #8 #0x80000 #0x4000)) (then (local.set $x (i32.add #1 (local.get $x)))))
            (if (i32.eqz (i32.and #7 (local.get $i))) (then (drop (call $delete_ (local.get $b) #0x8000 #8))))")
    ));
    // All count with one seed, so that they meet on keys.
    assert!(answers.iter().map(|(answer, _)| *answer.as_ref().unwrap()).sum::<u32>() > 64);
    host.check(&told(&answers));
}

#[test]
fn sixty_four_instances_that_take_the_last_keys() {
    let host = Host::new();
    (0..QUOTA.keys - 10).for_each(|i| host.bucket.set(&format!("there {i}"), b"").unwrap());
    let answers = race(&host, "(local.set $b (call $main)) (call $name #0x8000 (local.get $b)) (call $increment_ (local.get $b) @l ##1) (drop)
        (call $name #0x8000 (i32.wrap_i64 (call $sum))) (call $set_ (local.get $b) #0x8000 #8 #0 #0)");
    let made = answers.iter().filter(|(answer, _)| *answer.as_ref().unwrap() == 0).count();
    assert_eq!(made, 9, "one is the counter's");
    assert_eq!(told(&answers), BTreeSet::from(["quota".to_owned()]));
    assert_eq!(host.account.used().keys, QUOTA.keys);
    host.check(&told(&answers));
}

#[test]
fn increments_of_sixty_four_instances_are_all_counted() {
    let host = Host::new();
    let answers = race(
        &host,
        &format!(
            "(local.set $b (call $main)) {} #0",
            repeat(200, "(if (call $increment_ (local.get $b) @k ##1) (then (return #1)))")
        ),
    );
    assert!(answers.iter().all(|(answer, _)| matches!(answer, Ok(0))));
    assert_eq!(host.bucket.get("k").unwrap().unwrap(), "12800");
    host.check(&told(&answers));
}

#[test]
fn swaps_of_sixty_four_instances_end() {
    let host = Host::new();
    let answers = race(
        &host,
        &format!(
            "(local.set $b (call $main)) {} #0",
            repeat(
                20,
                "(if (call $attempt_ (local.get $b) @k) (then (return #1)))
            (local.set $c (call $given))
            (block $done (loop $again
                (local.set $j (call $swap_ (local.get $c) @text))
                (br_if $done (i32.eqz (local.get $j)))
                (if (i32.ne #4 (local.get $j)) (then (return #2)))
                (local.set $c (call $lost)) (br $again)))"
            )
        ),
    );
    assert!(answers.iter().all(|(answer, _)| matches!(answer, Ok(0))));
    host.check(&told(&answers));
}

#[test]
fn more_calls_at_once_than_are_allowed_are_busy_and_give_their_places_back() {
    let host = Host::with(|builder| builder.limits(Limits { calls_at_once_max: 1, ..limits() }));
    let answers = race(
        &host,
        &format!(
            "(local.set $b (call $main)) {} #0",
            repeat(100, "(drop (call $set_ (local.get $b) @k #0x80000 #0x10000))")
        ),
    );
    assert!(told(&answers).iter().all(|text| text == "busy"));
    host.run("(call $set_ (call $main) @k @text)", End::Returns(0), &[]);
}

#[test]
fn a_bucket_that_is_dropped_under_its_guests() {
    let store = kvasi::Store::in_memory(kvasi::Options::new()).unwrap();
    let bucket = Backend::bucket(&store, "gone").unwrap();
    let ctx = WasiKeyValueCtx::builder().limits(limits()).grant("main", bucket, Rights::ALL).build();
    let body = "(local.set $b (call $main)) (loop $until_it_is_gone
        (br_if $until_it_is_gone (i32.eqz (i32.or (call $set_ (local.get $b) @k @text)
            (i32.or (call $get_ (local.get $b) @k) (call $list_ (local.get $b) #0 #0 #0))))))
        (call $attempt_ (local.get $b) @k)";
    let component = compile(body, REALLOC);
    std::thread::scope(|scope| {
        let guests: Vec<_> = (0..4).map(|_| scope.spawn(|| guest::call(&component, &ctx, 600))).collect();
        std::thread::sleep(std::time::Duration::from_millis(50));
        store.drop_bucket("gone").unwrap();
        for guest in guests {
            let (answer, texts) = guest.join().expect("the host panicked");
            assert_eq!(answer.unwrap(), 3);
            assert_eq!(texts, BTreeSet::from(["invalid".to_owned()]));
        }
    });
}

#[test]
fn guests_of_two_tenants_have_an_account_each() {
    let store = kvasi_wasmtime::backend::Memory::new().unwrap();
    let component = compile(
        &format!(
            "(local.set $b (call $main)) {} (local.get $x)",
            repeat(100, "(call $name #0x8000 (local.get $i))
                (if (i32.eqz (call $set_ (local.get $b) #0x8000 #8 #0 #92)) (then (local.set $x (i32.add #1 (local.get $x)))))")
        ),
        REALLOC,
    );
    for (tenant, keys) in [("a", 10), ("b", 30)] {
        let account = Account::new(Usage { bytes: keys * 100 + 99, keys: u64::MAX });
        let bucket: Arc<dyn LocalBucket> =
            Arc::new(Metered::new(store.bucket(tenant).unwrap(), [account.clone()]).unwrap());
        let ctx = WasiKeyValueCtx::builder().limits(limits()).grant("main", bucket, Rights::ALL).build();
        let (answer, texts) = guest::call(&component, &ctx, 600);
        assert_eq!(answer.unwrap(), keys as u32);
        assert_eq!(texts, BTreeSet::from(["quota".to_owned()]));
        assert_eq!(account.used(), Usage { bytes: keys * 100, keys });
    }
}
