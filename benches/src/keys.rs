//! Keys and values: from a number, the same in every process, for every store, and in the guest's WebAssembly.
//!
//! A key is `user:` and 16 hexadecimal digits of a scrambled number, so that neighbours in number are nowhere near each
//! other in byte order. A value is a window on bytes that do not compress.

/// Length of every key.
pub const KEY_BYTES: usize = 21;

/// A bijection of 64 bits that scatters. The guest computes the same, see `guest.wat`.
#[inline]
pub fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
}

/// The key of a number.
#[inline]
pub fn key(number: u64) -> [u8; KEY_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut key = *b"user:0000000000000000";
    let mut rest = scatter(number);
    for digit in key[5..].iter_mut().rev() {
        *digit = DIGITS[(rest & 15) as usize];
        rest >>= 4;
    }
    key
}

/// A small, fast, seeded source of numbers (xorshift64*): the benchmark must not wait for its dice.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed, the same numbers.
    pub fn new(seed: u64) -> Dice {
        Dice(scatter(seed.wrapping_add(1)) | 1)
    }

    /// The next 64 bits.
    #[inline]
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which is at most 2^32.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((self.roll() >> 32) * bound) >> 32
    }

    /// A number in `0.0 .. 1.0`.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Bytes to cut values from; no two windows alike, none compressible.
#[derive(Clone, Debug)]
pub struct Values {
    pool: Vec<u8>,
    value_bytes: usize,
}

impl Values {
    /// Windows of `value_bytes` bytes.
    pub fn new(value_bytes: usize) -> Values {
        let mut dice = Dice::new(0x7661_6c75_6573);
        let mut pool = Vec::with_capacity((1 << 20) + value_bytes);
        while pool.len() < (1 << 20) + value_bytes {
            pool.extend_from_slice(&dice.roll().to_le_bytes());
        }
        Values { pool, value_bytes }
    }

    /// A value by number; equal numbers, equal values.
    #[inline]
    pub fn get(&self, number: u64) -> &[u8] {
        let start = scatter(number) as usize & ((1 << 20) - 1);
        &self.pool[start..start + self.value_bytes]
    }
}

/// Numbers below `count` with Zipf's frequencies, the popular ones scattered over all of them.
///
/// Source: Gray et al., "Quickly generating billion-record synthetic databases", as YCSB uses it.
#[derive(Clone, Debug)]
pub struct Zipf {
    count: u64,
    theta: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    /// `theta` is YCSB's constant, 0.99 by default there. Takes a pass over `count`.
    pub fn new(count: u64, theta: f64) -> Zipf {
        let zeta: f64 = (1..=count).map(|i| (i as f64).powf(-theta)).sum();
        let zeta2 = 1.0 + 0.5f64.powf(theta);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - zeta2 / zeta);
        Zipf { count, theta, zeta, alpha: 1.0 / (1.0 - theta), eta }
    }

    /// The next number.
    #[inline]
    pub fn pick(&self, dice: &mut Dice) -> u64 {
        let unit = dice.unit();
        let scaled = unit * self.zeta;
        let rank = if scaled < 1.0 {
            0
        } else if scaled < 1.0 + 0.5f64.powf(self.theta) {
            1
        } else {
            (self.count as f64 * (self.eta * unit - self.eta + 1.0).powf(self.alpha)) as u64
        };
        // Rank is popularity; which key has it is another matter.
        scatter(rank.min(self.count - 1)) % self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_have_one_length() {
        let keys: std::collections::HashSet<_> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
        assert_eq!(&key(0), b"user:0000000000000000");
    }

    #[test]
    fn zipf_prefers_few_and_reaches_many() {
        let (zipf, mut dice) = (Zipf::new(1000, 0.99), Dice::new(1));
        let mut seen = vec![0u32; 1000];
        for _ in 0..100_000 {
            seen[zipf.pick(&mut dice) as usize] += 1;
        }
        assert!(seen.iter().max().is_some_and(|&most| most > 10_000));
        assert!(seen.iter().filter(|&&times| times > 0).count() > 500);
    }
}
