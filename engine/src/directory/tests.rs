//! The directory against a map, what it takes of memory and of probes, and what readers see while others write.

use crossbeam_epoch as epoch;

use super::*;
use std::collections::HashMap;

/// Keys are numbers; the place of key `k` at generation `g` is `2 + k + g * KEYS`.
const KEYS: u64 = if cfg!(miri) { 80 } else { 200_000 };
/// Few under Miri, so that few keys have parts grow and split.
const SHARDS: usize = if cfg!(miri) { 2 } else { super::SHARDS };

fn hash(key: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes())
}

fn key_at(place: Place) -> u64 {
    (place.0 - 2) % KEYS
}

struct AsPlaced;

impl Keys for AsPlaced {
    fn hash_of(&self, place: Place) -> Result<Option<u64>> {
        Ok(Some(hash(key_at(place))))
    }

    fn fetch(&self, _place: Place) {}
}

fn set(directory: &Directory, key: u64, place: Place) {
    let guard = &epoch::pin();
    let mut shard = directory.lock(hash(key));
    let old = shard.find(hash(key), guard, |p| Ok(key_at(p) == key)).unwrap();
    shard.set(hash(key), old, place, guard, &AsPlaced).unwrap();
}

fn get(directory: &Directory, key: u64) -> Option<Place> {
    directory.find(hash(key), &epoch::pin(), |p| Ok(key_at(p) == key)).unwrap()
}

#[test]
fn agrees_with_a_map_through_growth_overwrites_and_removals() {
    let directory = Directory::new(SHARDS);
    let mut map = HashMap::new();
    for round in 0..3 {
        for key in (0..KEYS).filter(|k| !hash(k + round).is_multiple_of(4)) {
            let place = Place(2 + key + round * KEYS);
            set(&directory, key, place);
            map.insert(key, place);
        }
        for key in (0..KEYS).filter(|k| hash(k ^ round).is_multiple_of(5)) {
            if let Some(place) = map.remove(&key) {
                directory.lock(hash(key)).remove(hash(key), place, &epoch::pin());
            }
        }
        for key in 0..KEYS {
            assert_eq!(get(&directory, key), map.get(&key).copied(), "key {key} round {round}");
        }
        assert_eq!(directory.keys(&epoch::pin()), map.len() as u64);
    }
    let everything: usize = (0..directory.shards()).map(|s| directory.places(s, &epoch::pin()).len()).sum();
    assert_eq!(everything, map.len());
}

#[test]
#[cfg_attr(miri, ignore = "needs many keys to be a statement")]
fn takes_at_most_12_bytes_a_key_at_any_size() {
    let directory = Directory::new(SHARDS);
    for key in 0..KEYS {
        set(&directory, key, Place(2 + key));
        if key > 20_000 && key % 1_000 == 0 {
            let bytes = directory.bytes(&epoch::pin()) as f64 / key as f64;
            assert!(bytes <= 12.0, "{bytes} bytes a key at {key} keys");
        }
    }
}

#[test]
fn a_probe_stops_at_the_tag_nearly_always() {
    // In few shards parts are split as often as among many more keys: tags are used up.
    for (shards, most) in [(SHARDS, KEYS / 1000), (2, KEYS / 250)] {
        if shards < SHARDS && !cfg!(feature = "testing") {
            continue;
        }
        let looked = records_looked_at_for_misses(shards);
        assert!(looked <= most + 1, "{looked} records looked at for {KEYS} misses, {shards} shards");
    }
}

fn records_looked_at_for_misses(shards: usize) -> u64 {
    let directory = Directory::new(shards);
    (0..KEYS).for_each(|key| set(&directory, key, Place(2 + key)));
    let mut looked = 0u64;
    for key in KEYS..2 * KEYS {
        let looked = &mut looked;
        directory
            .find(hash(key), &epoch::pin(), |_| {
                *looked += 1;
                Ok(false)
            })
            .unwrap();
    }
    looked
}

#[test]
fn readers_never_miss_a_key_while_others_are_inserted() {
    let directory = Directory::new(SHARDS);
    let keys = KEYS / 4;
    (0..keys).for_each(|key| set(&directory, key, Place(2 + key)));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for key in keys..KEYS {
                set(&directory, key, Place(2 + key));
                set(&directory, key - keys, Place(2 + key - keys + KEYS));
            }
        });
        while !writer.is_finished() {
            for key in (0..keys).step_by(if cfg!(miri) { 7 } else { 97 }) {
                assert!(get(&directory, key).is_some(), "key {key}");
            }
        }
    });
}

#[test]
fn a_snapshot_sees_a_batch_whole() {
    let directory = Directory::new(SHARDS);
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    let hashes: Vec<u64> = (0..4).map(hash).collect();
    (0..4).for_each(|key| set(&directory, key, Place(2 + key)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..rounds {
                let guard = &epoch::pin();
                let mut shards = directory.lock_all(&hashes);
                shards.begin();
                for key in 0..4 {
                    let shard = shards.of(hash(key));
                    let old = shard.find(hash(key), guard, |p| Ok(key_at(p) == key)).unwrap();
                    let new = Place(2 + key + round * KEYS);
                    shard.set(hash(key), old, new, guard, &AsPlaced).unwrap();
                }
            }
        });
        let mut last = 0;
        while last + 1 < rounds {
            let mut keys: Vec<Seen> = hashes.iter().map(|h| Seen::new(*h)).collect();
            let read = |_: &[Seen]| Ok((0..4).map(|k| (get(&directory, k).unwrap().0 - 2) / KEYS).collect::<Vec<_>>());
            let seen = directory.snapshot(&mut keys, read).unwrap();
            assert!(seen.iter().all(|r| *r == seen[0]), "{seen:?}");
            last = seen[0];
        }
    });
}
