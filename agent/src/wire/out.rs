//! Bytes that wait to be written: small pieces are joined, large ones pass by reference count, all go out vectored.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Pieces up to this size are copied together; a copy of that size costs less than a vector entry.
const JOIN: usize = 1024;

/// A queue of bytes to one peer.
#[derive(Debug, Default)]
pub struct OutQueue {
    ready: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
    total: u64,
}

impl OutQueue {
    /// Appends bytes that the caller shares.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= JOIN {
            return self.extend(&bytes);
        }
        self.len += bytes.len();
        self.total += bytes.len() as u64;
        self.seal();
        self.ready.push_back(bytes);
    }

    /// Appends a copy.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        self.total += bytes.len() as u64;
        self.tail.extend_from_slice(bytes);
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes ever appended.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.ready.push_back(self.tail.split().freeze());
        }
    }

    /// Fills `slices` with what comes first; returns how many were filled.
    pub fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.seal();
        let mut n = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.ready) {
            *slot = IoSlice::new(piece);
            n += 1;
        }
        n
    }

    /// Forgets the first `n` bytes, which were written.
    pub fn advance(&mut self, mut n: usize) {
        self.len -= n.min(self.len);
        while n > 0 {
            let Some(front) = self.ready.front_mut() else { return };
            if front.len() > n {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.ready.pop_front();
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn order_survives_joining_and_partial_writes() {
        let mut q = OutQueue::default();
        let mut expected = Vec::new();
        for i in 0..200usize {
            let piece = vec![u8::try_from(i).unwrap(); if i % 7 == 0 { 3000 } else { i }];
            expected.extend_from_slice(&piece);
            if i % 2 == 0 { q.push(piece.into()) } else { q.extend(&piece) }
        }
        let mut got = Vec::new();
        let mut step = 1;
        while !q.is_empty() {
            let mut slices = [IoSlice::new(&[]); 4];
            let n = q.slices(&mut slices);
            let written: Vec<u8> = slices[..n].iter().flat_map(|s| s.to_vec()).take(step).collect();
            got.extend_from_slice(&written);
            let n = written.len();
            q.advance(n);
            step = step % 4097 + 13;
        }
        assert_eq!(got, expected);
        assert_eq!(q.total(), expected.len() as u64);
    }
}
