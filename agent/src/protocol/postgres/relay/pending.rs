//! What the upstream still owes an answer for, in order.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use crate::{
    action::Action,
    mask::Hits,
    protocol::postgres::{
        copy::CopyMasker,
        mask::Plan,
        prepared::{Computed, Portal, Prepared},
    },
    record::{EventBody, MaskedNote},
    session::{DataRight, Refusal},
    sql::{CopyInfo, StatementInfo},
};

/// One answer that is owed.
#[derive(Debug)]
pub enum Expect {
    /// Of a simple Query: anything up to ReadyForQuery.
    Query(Box<Op>),
    /// Of a FunctionCall: up to ReadyForQuery.
    Function(Box<Op>),
    /// Of the frame that stands for a refused Query or FunctionCall: error, ReadyForQuery.
    RefusedQuery(Refusal),
    /// Of the frame that stands for a refused part of a pipeline: an error.
    Refused(Refusal),
    /// ParseComplete.
    Parse {
        /// Name of the statement.
        name: String,
        /// What the name meant before.
        previous: Option<Arc<Prepared>>,
    },
    /// BindComplete.
    Bind {
        /// Name of the portal.
        name: String,
        /// What the name meant before.
        previous: Option<Arc<Portal>>,
    },
    /// ParameterDescription, then RowDescription or NoData.
    DescribeStatement {
        /// Whose.
        statement: Option<Arc<Prepared>>,
    },
    /// RowDescription or NoData.
    DescribePortal {
        /// Whose.
        portal: Option<Arc<Portal>>,
        /// Who asked.
        asked_by: Asker,
    },
    /// Rows or data, up to CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute {
        /// The command.
        op: Box<Op>,
        /// What it runs.
        portal: Arc<Portal>,
    },
    /// CloseComplete.
    Close {
        /// `S` or `P`.
        kind: u8,
        /// Name.
        name: String,
    },
    /// ReadyForQuery.
    Sync,
}

/// Who asked for a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The client: it gets the answer.
    Client,
    /// We: the answer stops here.
    Us,
}

/// A command under way.
#[derive(Debug)]
pub struct Op {
    /// Its number.
    pub seq: u64,
    /// When it was forwarded.
    pub since: Instant,
    /// What it runs, for names and masks.
    pub statements: Arc<[StatementInfo]>,
    /// What was judged, of a simple Query.
    pub judged: Option<Action>,
    /// Which of its computed columns derive from masked ones.
    pub computed: Computed,
    /// It may reach a masked column: messages are not to quote one.
    pub touches: bool,
    /// COPYs it will do, in order.
    pub copies: VecDeque<CopyInfo>,
    /// The COPY that runs.
    pub copying: Copying,
    /// The right to its data.
    pub data: DataRight,
    /// Masks of the rows that come now.
    pub plan: Option<Arc<Plan>>,
    /// For the record.
    pub tally: Tally,
}

/// The state of COPY in a command.
#[derive(Debug, Default)]
pub enum Copying {
    /// None.
    #[default]
    No,
    /// The client sends.
    In,
    /// The client has said that it has sent all.
    InDone,
    /// The upstream sends.
    Out(Box<CopyMasker>),
}

/// What the record will say about a response.
#[derive(Debug, Default)]
pub struct Tally {
    /// Tags or the error.
    pub result: String,
    /// It failed.
    pub failed: bool,
    /// Columns of the first result.
    pub columns: Option<Arc<[Arc<str>]>>,
    /// First rows.
    pub sample: Vec<Vec<Option<String>>>,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Masked.
    pub hits: Hits,
}

impl Op {
    /// Whether data of the client is what the upstream waits for, or will be.
    pub fn awaits_copy_start(&self) -> bool {
        matches!(self.copying, Copying::No | Copying::InDone)
            && self.copies.iter().any(|copy| copy.direction == crate::sql::CopyDirection::In)
    }

    /// Adds a tag.
    pub fn note(&mut self, tag: &str) {
        const LONGEST: usize = 1000;
        if self.tally.result.len() + tag.len() < LONGEST {
            if !self.tally.result.is_empty() {
                self.tally.result.push_str("; ");
            }
            self.tally.result.push_str(tag);
        }
    }

    /// The record of its end.
    pub fn result(self) -> EventBody {
        let Tally { result, failed, columns, sample, rows, bytes, hits } = self.tally;
        EventBody::Result {
            seq: self.seq,
            result: result.into(),
            failed,
            columns: columns.unwrap_or_default(),
            sample,
            rows,
            bytes,
            masked: MaskedNote {
                count: hits.count,
                detectors: hits.detectors.iter().map(ToString::to_string).collect(),
            },
            duration_us: u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl Expect {
    /// The command, where it is one.
    pub fn op_mut(&mut self) -> Option<&mut Op> {
        match self {
            Self::Query(op) | Self::Function(op) | Self::Execute { op, .. } => Some(op),
            _ => None,
        }
    }

    /// Whether ReadyForQuery ends it.
    pub fn ends_at_ready(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Function(_) | Self::RefusedQuery(_) | Self::Sync)
    }
}
