//! Reads from bytes that nobody vouches for: a missing or overlong number is `None`, never a panic.

/// Most bytes of a varint: 64 bits, seven at a time.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// The number in sixteen lower-case hexadecimal digits, as they stand in names of files.
pub(crate) fn hex16(digits: &str) -> Option<u64> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(u64::from(digit - b'0')),
        b'a'..=b'f' => Some(u64::from(digit - b'a') + 10),
        _ => None,
    };
    if digits.len() != 16 {
        return None;
    }
    digits.bytes().try_fold(0, |number, digit| Some(number << 4 | value(digit)?))
}

/// The name of a file with this number: an open of a small store makes a hundred of them.
pub(crate) fn name16(before: &str, number: u64, after: &str) -> String {
    let mut name = String::with_capacity(before.len() + 16 + after.len());
    name.push_str(before);
    for shift in (0..64).step_by(4).rev() {
        name.push(char::from(b"0123456789abcdef"[(number >> shift) as usize & 15]));
    }
    name.push_str(after);
    name
}

/// A position in untrusted bytes; every read moves it forward or says `None`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Bytes read so far.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// A number in little-endian groups of seven bits. Longer spellings of a number than needed are refused, so that
    /// one record has one encoding.
    #[inline]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let first = self.u8()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return (byte != 0).then_some(value);
            }
        }
        None
    }
}

/// Bytes that [`put_varint`] takes for `value`.
#[inline]
pub(crate) fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Writes `value` to the front of `into`; the bytes written.
#[inline]
pub(crate) fn put_varint(into: &mut [u8], mut value: u64) -> usize {
    let mut n = 0;
    while value >= 0x80 {
        into[n] = value as u8 | 0x80;
        value >>= 7;
        n += 1;
    }
    into[n] = value as u8;
    n + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_in_the_announced_length() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = [0; VARINT_BYTES_MAX];
                let n = put_varint(&mut bytes, value);
                assert_eq!(n, varint_bytes(value), "{value}");
                let mut reader = Reader::new(&bytes[..n]);
                assert_eq!(reader.varint(), Some(value));
                assert_eq!(reader.at(), n);
                assert_eq!(Reader::new(&bytes[..n - 1]).varint(), None, "cut short");
            }
        }
    }

    #[test]
    fn names_read_back() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            let name = name16("a-", number, ".b");
            assert_eq!(name, format!("a-{number:016x}.b"));
            assert_eq!(hex16(&name[2..18]), Some(number));
        }
        for bad in ["", "0", "000000000000000G", "00000000000000+1", "00000000000000000", "000000000000000A"] {
            assert_eq!(hex16(bad), None, "{bad}");
        }
    }

    #[test]
    fn overlong_and_overflowing_varints_are_refused() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 10]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 11]).varint(), None);
    }
}
