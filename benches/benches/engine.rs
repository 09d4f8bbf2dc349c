//! Our own calls, by criterion: one thread, 1 M keys of 21 bytes, 100-byte values, `Durability::Os`, on a real directory.
//!
//! `cargo bench -p kvasi-bench --no-default-features --bench engine [-- FILTER]`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvasi::{Bucket, Durability, ListOptions, Options, Store};
use kvasi_bench::Result;
use kvasi_bench::keys::{Dice, Values, key};

const KEYS: u64 = 1_000_000;
const BATCH: u64 = 100;
const PAGE: u64 = 1000;

/// A bucket with all keys.
fn filled(dir: &std::path::Path, values: &Values) -> Result<Bucket> {
    let bucket = Store::open(dir, Options::new().durability(Durability::Os))?.bucket("bench")?;
    for number in 0..KEYS {
        bucket.set(&key(number), values.get(number))?;
    }
    Ok(bucket)
}

#[allow(
    clippy::unwrap_used,
    reason = "criterion's closures have no way to return an error; a failed call voids the run"
)]
fn calls(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let values = Values::new(100);
    let bucket = filled(dir.path(), &values).unwrap();
    let mut dice = Dice::new(1);
    let mut buffer = Vec::new();

    let mut one = criterion.benchmark_group("one key");
    one.throughput(Throughput::Elements(1));
    one.bench_function("get", |b| b.iter(|| bucket.get_into(&key(dice.below(KEYS)), &mut buffer).unwrap()));
    one.bench_function("get view", |b| b.iter(|| bucket.get(&key(dice.below(KEYS))).unwrap()));
    one.bench_function("get miss", |b| b.iter(|| bucket.get(&key(KEYS + dice.below(KEYS))).unwrap()));
    one.bench_function("exists", |b| b.iter(|| bucket.exists(&key(dice.below(KEYS))).unwrap()));
    one.bench_function("set", |b| {
        b.iter(|| bucket.set(&key(dice.below(KEYS)), values.get(dice.roll())).unwrap());
    });
    one.bench_function("increment", |b| {
        b.iter(|| bucket.increment(&key(2 * KEYS + dice.below(1000)), 1).unwrap());
    });
    one.bench_function("compare-and-swap", |b| {
        b.iter(|| {
            let key = key(3 * KEYS + dice.below(1000));
            let version = bucket.get_into(&key, &mut buffer).unwrap();
            bucket.compare_and_swap(&key, version, b"42").unwrap()
        });
    });
    one.finish();

    let mut many = criterion.benchmark_group("many keys");
    many.throughput(Throughput::Elements(BATCH));
    many.bench_function("get_many", |b| {
        let keys = |dice: &mut Dice| (0..BATCH).map(|_| key(dice.below(KEYS))).collect::<Vec<_>>();
        b.iter_batched(|| keys(&mut dice), |keys| bucket.get_many(&keys).unwrap(), BatchSize::SmallInput);
    });
    many.bench_function("set_many", |b| {
        let pairs =
            |dice: &mut Dice| (0..BATCH).map(|_| (key(dice.below(KEYS)), values.get(dice.roll()))).collect::<Vec<_>>();
        b.iter_batched(|| pairs(&mut dice), |pairs| bucket.set_many(&pairs).unwrap(), BatchSize::SmallInput);
    });
    many.throughput(Throughput::Elements(PAGE));
    many.bench_function("list page", |b| {
        // From anywhere but the last page.
        let after = |dice: &mut Dice| format!("user:{:02x}", dice.below(0xf0)).into_bytes();
        b.iter_batched(
            || after(&mut dice),
            |after| {
                let page = bucket.list_keys(ListOptions { after: Some(&after), ..ListOptions::default() }).unwrap();
                assert_eq!(page.len() as u64, PAGE);
                page
            },
            BatchSize::SmallInput,
        );
    });
    many.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
