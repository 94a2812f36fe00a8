//! What can go wrong.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why something was not recorded or not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The disk is full. Nothing is recorded, so nothing may happen, until there is space.
    #[error("the disk that holds the record is full")]
    Full,
    /// The event is larger than a segment takes.
    #[error("an event of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Another daemon writes this record.
    #[error("another process writes the record in {0}")]
    Locked(PathBuf),
    /// The recorder was closed.
    #[error("the recorder is closed")]
    Closed,
    /// A sync failed. What is on disk is not known any more, so nothing more is recorded.
    #[error("the record could not be synced to disk: {0}")]
    Failed(Arc<str>),
    /// The log is not what was written.
    #[error("the record is damaged: {file} at byte {offset}: {what}")]
    Damaged {
        /// File name within the folder.
        file: String,
        /// Offset in the file; in a sealed segment, in its uncompressed form.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Events that a reader still wanted were removed by retention.
    #[error("events {from} to {to} were removed by retention before they were read")]
    Pruned {
        /// First missing sequence number.
        from: u64,
        /// Last missing sequence number.
        to: u64,
    },
    /// The signing key.
    #[error("the signing key {0}")]
    Key(&'static str),
    /// An event could not be written as JSON.
    #[error("the event cannot be encoded")]
    Encode(#[from] serde_json::Error),
    /// The files.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

pub(super) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RecordError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RecordError::Full,
        _ => RecordError::Io { what, path: path.to_owned(), source },
    }
}
