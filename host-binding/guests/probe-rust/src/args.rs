//! The tokens of one line: separated by single spaces, percent-encoded. ../../README.md defines them.

/// Handles live in numbered slots below this.
pub const SLOTS: usize = 1024;
const PATTERN_BYTES_MAX: u64 = 2_147_483_647;

/// An unknown command, or an argument that is missing, malformed or one too many.
pub struct Malformed;

pub struct Args<'a> {
    /// What is left of the line, from the separator on; `None` at its end.
    rest: Option<&'a [u8]>,
}

impl<'a> Args<'a> {
    /// The command's name, and its arguments.
    pub fn split(line: &'a [u8]) -> (&'a [u8], Args<'a>) {
        let mut args = Args { rest: Some(line) };
        let command = args.take().unwrap_or_default();
        (command, args)
    }

    /// The next token as it stands in the line; never an empty one.
    fn take(&mut self) -> Result<&'a [u8], Malformed> {
        let rest = self.rest.ok_or(Malformed)?;
        let len = rest
            .iter()
            .position(|&byte| byte == b' ')
            .unwrap_or(rest.len());
        self.rest = rest.get(len + 1..);
        if len == 0 {
            return Err(Malformed);
        }
        Ok(&rest[..len])
    }

    /// To be called after the last argument.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_some() {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    pub fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        decode(self.take()?)
    }

    /// A key, a name, a prefix.
    pub fn text(&mut self) -> Result<String, Malformed> {
        decode_text(self.take()?)
    }

    /// All the keys that are left.
    pub fn texts(&mut self) -> Result<Vec<String>, Malformed> {
        let mut texts = Vec::new();
        while self.rest.is_some() {
            texts.push(self.text()?);
        }
        Ok(texts)
    }

    pub fn value(&mut self) -> Result<Vec<u8>, Malformed> {
        decode_value(self.take()?)
    }

    /// All the pairs K=V that are left.
    pub fn pairs(&mut self) -> Result<Vec<(String, Vec<u8>)>, Malformed> {
        let mut pairs = Vec::new();
        while self.rest.is_some() {
            let token = self.take()?;
            let equals = token
                .iter()
                .position(|&byte| byte == b'=')
                .ok_or(Malformed)?;
            pairs.push((
                decode_text(&token[..equals])?,
                decode_value(&token[equals + 1..])?,
            ));
        }
        Ok(pairs)
    }

    /// A cursor; a bare `-` is none.
    pub fn cursor(&mut self) -> Result<Option<String>, Malformed> {
        match self.take()? {
            b"-" => Ok(None),
            token => decode_text(token).map(Some),
        }
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        parse_u64(self.take()?).ok_or(Malformed)
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        parse_i64(self.take()?).ok_or(Malformed)
    }

    pub fn slot(&mut self) -> Result<usize, Malformed> {
        let slot = self.u64()?;
        if slot < SLOTS as u64 {
            Ok(slot as usize)
        } else {
            Err(Malformed)
        }
    }

    /// PREFIX FROM N: the keys PREFIX followed by FROM, FROM+1, … in decimal.
    pub fn run(&mut self) -> Result<impl Iterator<Item = String> + use<>, Malformed> {
        let (prefix, from, count) = (self.text()?, self.u64()?, self.u64()?);
        Ok((from..from + count).map(move |number| format!("{prefix}{number}")))
    }
}

/// Digits, 1 to 18 of them.
fn parse_u64(token: &[u8]) -> Option<u64> {
    parse_digits(token, 18)
}

/// An optional minus sign and 1 to 19 digits, within the range of i64.
pub fn parse_i64(token: &[u8]) -> Option<i64> {
    match token.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(parse_digits(digits, 19)?),
        None => 0_i64.checked_add_unsigned(parse_digits(token, 19)?),
    }
}

fn parse_digits(token: &[u8], digits_max: usize) -> Option<u64> {
    let good = (1..=digits_max).contains(&token.len()) && token.iter().all(u8::is_ascii_digit);
    good.then(|| {
        token
            .iter()
            .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
    })
}

/// The bytes that a token stands for; a lone % is the empty one.
fn decode(token: &[u8]) -> Result<Vec<u8>, Malformed> {
    if token == b"%" {
        return Ok(Vec::new());
    }
    if token.is_empty() {
        return Err(Malformed);
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(if byte == b'%' {
            hex_digit(rest.next())? << 4 | hex_digit(rest.next())?
        } else {
            byte
        });
    }
    Ok(bytes)
}

fn hex_digit(digit: Option<&u8>) -> Result<u8, Malformed> {
    let value = digit.and_then(|&digit| char::from(digit).to_digit(16));
    value.map(|value| value as u8).ok_or(Malformed)
}

fn decode_text(token: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(decode(token)?).map_err(|_| Malformed)
}

/// A value: @N is N bytes of a pattern.
fn decode_value(token: &[u8]) -> Result<Vec<u8>, Malformed> {
    let Some(digits) = token.strip_prefix(b"@") else {
        return decode(token);
    };
    match parse_u64(digits) {
        Some(len) if len <= PATTERN_BYTES_MAX => {
            Ok((0..len).map(|i| ((i * 31 + 7) % 251) as u8).collect())
        }
        _ => Err(Malformed),
    }
}
