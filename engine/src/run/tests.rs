//! The format held to its drawing, and readers held to never believing damaged bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::format::{DELETED, Entry, FOOTER_BYTES, HEADER_BYTES, Header, SET, SET_WITH_EXPIRY, file_name, number_of};
use super::{Cursor, Damaged, Run, Writer};

const STORE: u64 = 7;
const HEADER: Header = Header { number: 5, from: 0, to: 1 << 32, salt: 9 };

type Keys = BTreeMap<(u64, Vec<u8>), (u64, u64)>;

fn write(header: Header, keys: &Keys) -> Vec<u8> {
    let mut writer = Writer::new(header, STORE, None);
    for ((bucket, key), &(stamp, expires)) in keys {
        writer.add(&Entry { bucket: *bucket, key, stamp, expires }).unwrap();
    }
    writer.finish().unwrap()
}

fn open(bytes: &[u8]) -> Result<Arc<Run>, Damaged> {
    Run::in_memory(bytes.to_vec(), STORE).map(Arc::new)
}

fn read(cursor: Option<Cursor>) -> Result<Keys, Damaged> {
    let mut keys = Keys::new();
    let Some(mut cursor) = cursor else { return Ok(keys) };
    loop {
        let entry = cursor.entry();
        keys.insert((entry.bucket, entry.key.to_vec()), (entry.stamp, entry.expires));
        if !cursor.next()? {
            return Ok(keys);
        }
    }
}

/// Keys of three buckets: short ones, one as long as they get, with and without an expiry.
fn sample(n: u64) -> Keys {
    let mut keys = Keys::new();
    for i in 0..n {
        let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let stamp = (hash >> 34 << 2) + i % 3;
        let expires = if stamp & 3 == SET_WITH_EXPIRY { 1_700_000_000_000 + i } else { 0 };
        keys.insert((1 + i % 2, format!("user:{hash:016x}").into_bytes()), (stamp, expires));
    }
    keys.insert((1, Vec::new()), (4 | SET, 0));
    keys.insert((1, vec![b'l'; 300]), (8 | SET, 0));
    keys.insert((1, vec![b'l'; 600]), (12 | DELETED, 0));
    keys.insert((9, vec![b'z'; crate::KEY_BYTES_MAX]), (16 | SET, 0));
    keys
}

#[test]
fn what_was_written_is_read_back_from_any_key_on() {
    for n in [0, 1, 63, 64, 65, 5000] {
        let keys = sample(n);
        let run = open(&write(HEADER, &keys)).unwrap();
        run.check().unwrap();
        assert_eq!(read(Cursor::first(&run).unwrap()).unwrap(), keys);
        let tombstones = keys.values().filter(|(stamp, _)| stamp & 3 == DELETED).count();
        assert_eq!((run.footer.entries, run.footer.tombstones), (keys.len() as u64, tombstones as u64));
        let some = keys.keys().step_by(1 + keys.len() / 50).map(|(bucket, key)| (*bucket, key.clone()));
        let absent = [(0, vec![]), (1, b"user:8".to_vec()), (2, vec![]), (2, vec![0xff]), (3, vec![]), (10, vec![])];
        for (bucket, key) in some.chain(absent) {
            let expected = keys.range((bucket, key.clone())..).next().filter(|((found, _), _)| *found == bucket);
            let found = Cursor::seek(&run, bucket, &key).unwrap();
            assert_eq!(
                found.as_ref().map(|c| c.key()),
                expected.map(|((_, key), _)| key.as_slice()),
                "{bucket} {key:?}"
            );
            if found.is_some() {
                assert!(read(found).unwrap().into_iter().eq(keys.range((bucket, key)..).map(|(k, v)| (k.clone(), *v))));
            }
        }
    }
}

#[test]
fn an_entry_of_a_21_byte_key_takes_15_to_20_bytes() {
    let of = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let keys: Keys =
        (1..200_000).map(|i| ((1, format!("user:{:016x}", of(i)).into_bytes()), (of(i) >> 38 << 2, 0))).collect();
    let bytes = write(Header { to: 1 << 28, ..HEADER }, &keys).len() as f64 / keys.len() as f64;
    assert!((15.0..=20.0).contains(&bytes), "{bytes} bytes an entry");
}

#[test]
fn an_index_of_long_keys_is_small_beside_them() {
    let long = |i: u64| [i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().as_slice(), &[b'k'; 2040]].concat();
    let keys: Keys = (1..1_000).map(|i| ((1 + i % 2, long(i)), (i << 2, 0))).collect();
    let bytes = write(HEADER, &keys);
    assert!(bytes.len() < keys.len() * (2048 + 32), "{} bytes", bytes.len());
    let run = open(&bytes).unwrap();
    for (bucket, key) in keys.keys() {
        for from in [key.clone(), key[..4].to_vec(), key[..2047].to_vec(), [key, &b"+"[..]].concat()] {
            let expected = keys.range((*bucket, from.clone())..).next().filter(|((found, _), _)| found == bucket);
            let found = Cursor::seek(&run, *bucket, &from).unwrap();
            assert_eq!(found.as_ref().map(Cursor::key), expected.map(|((_, key), _)| key.as_slice()));
        }
    }
}

#[test]
fn the_bytes_are_the_documented_ones() {
    let keys = Keys::from([((1, b"ab".to_vec()), (8, 0)), ((1, b"abc".to_vec()), (13, 5)), ((2, vec![]), (22, 0))]);
    let header = Header { number: 5, from: 4, to: 256, salt: 9 };
    let bytes = write(header, &keys);
    let mut expected =
        b"kvasirun\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x09\0\0\0\0\0\0\0".to_vec();
    expected.extend([0; 4]);
    expected.extend(b"\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x10\0\0\x02\x08\0ab\x02\x01\x0d\0c\x05");
    expected.extend(b"\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\x10\0\0\0\x16\0");
    expected.extend(b"\x34\0\0\0\0\0\0\0\x1c\0\0\0\x01\0\0\0\0\0\0\0\x02\0ab");
    expected.extend(b"\x50\0\0\0\0\0\0\0\x14\0\0\0\x02\0\0\0\0\0\0\0\0\0");
    expected.extend(b"\x64\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0");
    expected.extend(b"\0\0\0\0\0\0\0\0\x18\0\0\0\0\0\0\0\x2e\0\0\0\0\0\0\0");
    expected.extend(b"\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x64\0\0\0\0\0\0\0\xf0\0\0\0\0\0\0\0");
    expected.extend([0; 8]);
    let mut bare = bytes.clone();
    let end = bytes.len();
    // The checksums, looked at below.
    for at in [48..52, 52..56, 80..84, end - 8..end] {
        bare[at].fill(0);
    }
    assert_eq!(bare, expected);
    assert_eq!(bytes[48..56], [0x04, 0x28, 0xb0, 0x46, 0x6e, 0xad, 0x4a, 0xaf]);
    assert_eq!(bytes.len(), HEADER_BYTES + 28 + 20 + 68 + 24 + FOOTER_BYTES);
}

#[test]
fn every_flipped_bit_and_every_cut_is_seen() {
    let mut keys = sample(100);
    keys.remove(&(9, vec![b'z'; crate::KEY_BYTES_MAX]));
    let bytes = write(HEADER, &keys);
    let reads = |bytes: &[u8]| open(bytes).and_then(|run| read(Cursor::first(&run)?));
    assert_eq!(reads(&bytes), Ok(keys));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(reads(&bad).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(open(&bytes[..len]).is_err(), "cut to {len}");
    }
    assert!(open(&[&bytes[..], &[0]].concat()).is_err(), "a byte more");
    assert!(Run::in_memory(bytes, STORE + 1).is_err(), "another store");
}

/// As if an attacker had made the checksums right: what is read may be anything, but there is no panic and an end.
#[test]
fn damaged_bytes_with_right_checksums_never_panic() {
    use crate::checksum::Seed;
    let mut keys = sample(700);
    keys.remove(&(9, vec![b'z'; crate::KEY_BYTES_MAX]));
    let bytes = write(HEADER, &keys);
    let good = open(&bytes).unwrap();
    let blocks: Vec<_> =
        (0..good.blocks()).map(|i| good.block(i).unwrap()).map(|b| b.start..b.start + b.bytes.len()).collect();
    let index = good.footer.index as usize..bytes.len() - FOOTER_BYTES;
    let mut state = 1u64;
    let mut random = move |n: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as usize % n
    };
    let rounds = if cfg!(miri) { 20 } else { 5_000 };
    for round in 0..rounds {
        let mut bad = bytes.clone();
        for _ in 0..1 + random(4) {
            let at = match random(4) {
                0 => index.start + random(index.len()),
                1 => bytes.len() - FOOTER_BYTES + random(32),
                2 => blocks[random(blocks.len())].start + 4 + random(40),
                _ => HEADER_BYTES + random(index.start - HEADER_BYTES),
            };
            bad[at] = if random(2) == 0 { random(256) as u8 } else { [0, 255, 254, 1][random(4)] };
        }
        for block in &blocks {
            let sum = Seed::new(HEADER.salt, block.start as u64).checksum(&bad[block.start + 4..block.end]);
            bad[block.start..block.start + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let end = bad.len() - FOOTER_BYTES;
        let at = u64::from_le_bytes(bad[end + 24..end + 32].try_into().unwrap());
        let sum = bad.get(at as usize..end).map_or(0, |index| Seed::new(HEADER.salt, at).checksum(index));
        bad[end + 40..end + 44].copy_from_slice(&sum.to_le_bytes());
        let sum = Seed::new(HEADER.salt, end as u64).checksum(&bad[end..end + 44]);
        bad[end + 44..].copy_from_slice(&sum.to_le_bytes());
        let Ok(run) = open(&bad) else { continue };
        let _ = run.check();
        let key = format!("user:{:x}", random(16));
        if let Ok(Some(mut cursor)) = Cursor::seek(&run, 1 + round as u64 % 2, key.as_bytes()) {
            for _ in 0..100 {
                if !cursor.next().unwrap_or(false) {
                    break;
                }
            }
        }
    }
}

#[test]
fn file_names_are_told_from_others() {
    assert_eq!(number_of(&file_name(0xabc)), Some(0xabc));
    for other in ["1.run", "0000000000000001.log", "000000000000000A.run"] {
        assert_eq!(number_of(other), None, "{other}");
    }
}
