//! Scrubbing of text that comes in pieces.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Hits, KnownSecrets, MaskSet, detect, merge, token};
use crate::action::MaskWith;

/// [`MaskSet::scrub`] for text of any length that comes in pieces, wherever they are cut.
///
/// The answer is that of scrubbing the whole, with three exceptions: NULL cannot be answered, so
/// [`MaskWith::Null`] redacts; a token or key longer than what is held back is redacted, whatever its mask; and of
/// such a token, everything up to the next byte that no token has is swallowed.
/// Some KiB (more with long secrets) are held back until [`StreamScrubber::finish`]; memory is bounded by four times
/// that and the largest piece.
pub struct StreamScrubber {
    masks: Arc<MaskSet>,
    secrets: Arc<KnownSecrets>,
    /// Text that was sent already, kept because it bears on what follows, then text that was not.
    pub(super) buffer: Vec<u8>,
    sent: usize,
    open: Option<Open>,
    hits: Hits,
}

/// Something that was masked already and whose end has not come yet.
#[derive(Clone, Copy)]
enum Open {
    Token,
    Key,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Continues,
    Ended,
}

impl StreamScrubber {
    /// Starts at the beginning of a text.
    pub fn new(masks: Arc<MaskSet>, secrets: Arc<KnownSecrets>) -> Self {
        Self { masks, secrets, buffer: Vec::new(), sent: 0, open: None, hits: Hits::default() }
    }

    /// Whether this is all of a text that would come out as it is.
    pub fn passes(&self, whole: &[u8]) -> bool {
        self.masks.is_clean(whole, &self.secrets)
    }

    /// Takes the next piece and appends to `out` what can be sent by now.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        // In slices, so that a large piece does not make the buffer as large.
        let enough = (detect::DECIDES + self.secrets.longest()) * 4;
        for slice in piece.chunks(enough) {
            self.buffer.extend_from_slice(slice);
            if self.buffer.len() - self.sent >= enough {
                self.run(Input::Continues, out);
            }
        }
    }

    /// Appends to `out` all that can be sent by now, however little it is: for text that somebody reads as it comes.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if self.sent < self.buffer.len() {
            self.run(Input::Continues, out);
        }
    }

    /// Ends the text: appends the rest to `out` and says what was masked in all of it.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Hits {
        self.run(Input::Ended, out);
        self.hits
    }

    /// How much of the text is not decided on until more has come.
    pub(super) fn held_back(&self) -> usize {
        // Without detectors, only a secret can have begun.
        let decides = if self.masks.has_detectors() { detect::DECIDES } else { 0 };
        decides + self.secrets.longest()
    }

    fn run(&mut self, input: Input, out: &mut Vec<u8>) {
        if !self.swallow(input) {
            return;
        }
        let mut found = SmallVec::new();
        self.masks.find(&self.buffer, &self.secrets, &mut found);
        merge(&mut found);
        let len = self.buffer.len();
        // What starts before this is fully known.
        let mut cut = match input {
            Input::Continues => len.saturating_sub(self.held_back()).max(self.sent),
            Input::Ended => len,
        };
        for range in &found {
            if range.end <= self.sent {
                continue;
            }
            if range.start >= cut {
                break;
            }
            if range.end > cut && len - range.start <= self.held_back() * 2 {
                cut = range.start.max(self.sent);
                break;
            }
            let mut range = *range;
            let unfinished = input == Input::Continues && range.end == len;
            if range.start < self.sent || unfinished {
                range.start = range.start.max(self.sent);
                range.with = range.with.min(MaskWith::Redact);
            }
            out.extend_from_slice(&self.buffer[self.sent..range.start]);
            self.masks.replace(&range, &self.buffer, out);
            self.masks.count(&range, &mut self.hits);
            self.sent = range.end;
            if unfinished {
                // Not by its kind: what was merged with a known secret goes by that.
                let key = memchr::memmem::find(&self.buffer[range.start..], b"PRIVATE KEY").is_some();
                self.open = Some(if key { Open::Key } else { Open::Token });
            }
        }
        if self.sent < cut {
            out.extend_from_slice(&self.buffer[self.sent..cut]);
            self.sent = cut;
        }
        self.forget();
    }

    /// Drops what belongs to something masked already. Answers whether there is anything left to look at.
    fn swallow(&mut self, input: Input) -> bool {
        match self.open {
            None => return true,
            Some(Open::Token) => {
                let rest = self.buffer[self.sent..].iter().take_while(|b| token::Class::Base64.has(**b) || **b == b'.');
                self.sent += rest.count();
                if self.sent < self.buffer.len() || input == Input::Ended {
                    self.open = None;
                }
            }
            Some(Open::Key) => {
                // The END line may have begun before the last cut.
                let from = self.sent.saturating_sub(detect::LOOKS_BACK);
                match token::closing(&self.buffer[from..]) {
                    Some(end) => {
                        self.sent = self.sent.max(from + end);
                        self.open = None;
                    }
                    None => self.sent = self.buffer.len(),
                }
            }
        }
        if self.open.is_some() {
            self.forget();
        }
        self.open.is_none()
    }

    fn forget(&mut self) {
        let gone = self.sent.saturating_sub(detect::LOOKS_BACK);
        self.buffer.drain(..gone);
        self.sent -= gone;
    }
}
