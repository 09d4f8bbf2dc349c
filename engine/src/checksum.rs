//! CRC-32 over everything that stands on the disk, mixed with where it stands.
//!
//! A seed made of the file's random salt and the offset makes a record valid in one place only: bytes that were moved,
//! left over from a recycled file, or planted inside a guest's value (guests cannot know the salt) do not check.
//! CRC-32 finds every error of one bit and every burst of up to 32 bits; other damage slips through once in 2^32.

/// What makes a checksum valid in one place only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    /// The seed for bytes at `offset` of the file with this salt.
    #[inline]
    pub(crate) fn new(salt: u64, offset: u64) -> Seed {
        let mixed = salt ^ offset.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Seed((mixed ^ (mixed >> 32)) as u32)
    }

    /// The checksum of `bytes` in this place. Never 0, so that zeroed bytes never check.
    #[inline]
    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        self.place(crc32fast::hash(bytes))
    }

    /// Makes the plain CRC-32 of bytes the checksum for this place: so the bytes can be summed up before it is known where
    /// they will stand.
    #[inline]
    pub(crate) fn place(self, crc: u32) -> u32 {
        (crc ^ self.0).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_holds_in_one_place_only() {
        let here = Seed::new(7, 64).checksum(b"record");
        assert_eq!(here, Seed::new(7, 64).checksum(b"record"));
        assert_ne!(here, Seed::new(7, 68).checksum(b"record"));
        assert_ne!(here, Seed::new(8, 64).checksum(b"record"));
        assert_ne!(here, Seed::new(7, 64).checksum(b"recorc"));
        assert_ne!(Seed::new(0, 0).checksum(&[0; 16]), 0);
    }
}
