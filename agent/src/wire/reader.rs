//! A bounded cursor over one frame.

/// The frame ended early, or did not end where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame is malformed")]
pub struct Short;

/// Reads big-endian fields from a frame. Nothing it returns lies outside of the frame.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over a whole frame body.
    pub fn new(frame: &'a [u8]) -> Self {
        Self { rest: frame }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A reader confined to the next `n` bytes.
    pub fn sub(&mut self, n: usize) -> Result<Reader<'a>, Short> {
        self.take(n).map(Reader::new)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[b]| b)
    }

    /// Two bytes, signed.
    pub fn i16(&mut self) -> Result<i16, Short> {
        self.array().map(i16::from_be_bytes)
    }

    /// Four bytes, signed.
    pub fn i32(&mut self) -> Result<i32, Short> {
        self.array().map(i32::from_be_bytes)
    }

    /// Four bytes, unsigned.
    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    /// A count that must not be negative and must fit what is left, at `each` bytes or more an item: so that nothing
    /// is reserved for items that cannot be there.
    pub fn count(&mut self, each: usize) -> Result<usize, Short> {
        let n = usize::try_from(self.i16()?).map_err(|_| Short)?;
        if n.saturating_mul(each) > self.rest.len() { Err(Short) } else { Ok(n) }
    }

    /// A string that ends with NUL, without it.
    pub fn cstr(&mut self) -> Result<&'a [u8], Short> {
        let end = memchr::memchr(0, self.rest).ok_or(Short)?;
        let (taken, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(taken)
    }

    /// A value with a four-byte length before it, where -1 is NULL.
    pub fn value(&mut self) -> Result<Option<&'a [u8]>, Short> {
        match self.i32()? {
            -1 => Ok(None),
            n => self.take(usize::try_from(n).map_err(|_| Short)?).map(Some),
        }
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Ends reading: anything left over is an error.
    pub fn all(self) -> Result<(), Short> {
        if self.rest.is_empty() { Ok(()) } else { Err(Short) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn no_index_escapes_the_frame() {
        let mut r = Reader::new(&[0, 0, 0, 4, 1, 2]);
        assert_eq!(r.value(), Err(Short), "a declared length beyond the frame");
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xfe]).value(), Err(Short), "a negative length that is not -1");
        assert_eq!(Reader::new(&[0xff; 4]).value(), Ok(None));
        assert_eq!(Reader::new(b"abc").cstr(), Err(Short), "an unterminated string");
        assert_eq!(Reader::new(&[0x7f, 0xff, 0, 0]).count(4), Err(Short), "more items than bytes");
        assert_eq!(Reader::new(&[0xff, 0xff]).count(0), Err(Short), "a negative count");
        let mut r = Reader::new(b"ab\0c");
        assert_eq!(r.cstr(), Ok(&b"ab"[..]));
        assert_eq!(r.all(), Err(Short), "trailing bytes");
        let mut r = Reader::new(&[1, 2, 3]);
        let mut inner = r.sub(2).unwrap();
        assert_eq!(inner.i32(), Err(Short));
        assert_eq!(r.u8(), Ok(3));
    }
}
