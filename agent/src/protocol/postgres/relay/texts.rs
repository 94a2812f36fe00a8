//! Texts that come again and again, and what they were read as.

use std::{collections::HashMap, hash::BuildHasher, sync::Arc};

use crate::{
    action::Action,
    protocol::postgres::prepared::weight,
    sql::{self, Classified, StatementInfo},
    wire::{Budget, Charge},
};

/// Longest text that is kept, in bytes, and how many are.
const LONGEST: usize = 2048;
const MOST: usize = 32;
/// Texts that are remembered to have come once, by their hash: only the second time is one kept.
const ONCE: usize = 64;

/// A text under the names of one moment.
#[derive(Clone, Debug)]
pub struct Meaning {
    /// What policy judges.
    pub action: Action,
    /// Its statements.
    pub statements: Arc<[StatementInfo]>,
    /// The text with its literals removed.
    pub shape: Arc<str>,
}

impl Meaning {
    pub fn new(text: &str, classified: Classified) -> Self {
        let Classified { action, statements } = classified;
        Self { action, statements: statements.into(), shape: sql::shape(text).into() }
    }
}

/// What texts meant that came lately. Names decide what a text means: when they change, all is forgotten.
#[derive(Debug)]
pub struct Texts {
    /// See [`super::super::names::NameState::epoch`].
    epoch: u64,
    known: HashMap<Box<str>, (Meaning, Charge)>,
    once: [u64; ONCE],
}

impl Default for Texts {
    fn default() -> Self {
        Self { epoch: 0, known: HashMap::new(), once: [0; ONCE] }
    }
}

impl Texts {
    /// What this very text meant under the same names.
    pub fn get(&mut self, text: &str, epoch: u64) -> Option<Meaning> {
        if self.epoch != epoch {
            self.known.clear();
            self.epoch = epoch;
        }
        self.known.get(text).map(|(meaning, _)| meaning.clone())
    }

    /// Keeps a meaning, if it is small and there is memory for it.
    pub fn keep(&mut self, text: &str, epoch: u64, meaning: &Meaning, memory: &Arc<Budget>) {
        if text.len() > LONGEST || self.epoch != epoch {
            return;
        }
        let hash = self.known.hasher().hash_one(text);
        let once = &mut self.once[hash as usize % ONCE];
        if std::mem::replace(once, hash) != hash {
            return;
        }
        // Which of them will come again nobody knows.
        if self.known.len() >= MOST {
            self.known.clear();
        }
        if let Ok(charge) = memory.charge(weight(text, &[])) {
            self.known.insert(text.into(), (meaning.clone(), charge));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::ProtocolId;

    fn meaning(of: &str) -> Meaning {
        let action = Action::opaque(ProtocolId::Postgres, crate::action::Target::new(of));
        Meaning { action, statements: Arc::from([]), shape: of.into() }
    }

    #[test]
    fn a_text_is_known_from_its_third_time_on_while_names_stay() {
        let memory = Budget::new(1 << 20);
        let mut texts = Texts::default();
        for epoch in [0, 1] {
            for time in 1..5 {
                let known = texts.get("a", epoch);
                // What came once under the names before counts as come once.
                assert_eq!(known.is_some(), time > if epoch == 0 { 2 } else { 1 }, "{epoch} {time}");
                assert!(known.is_none_or(|known| &*known.shape == "a"));
                texts.keep("a", epoch, &meaning("a"), &memory);
            }
        }
        assert!(texts.get("b", 1).is_none());
        // What was read before the names changed is not kept for after.
        texts.keep("b", 0, &meaning("b"), &memory);
        texts.keep("b", 0, &meaning("b"), &memory);
        assert!(texts.get("b", 1).is_none());
    }

    #[test]
    fn neither_number_nor_length_nor_memory_is_without_bound() {
        let memory = Budget::new(64 << 10);
        let mut texts = Texts::default();
        for _ in 0..2 {
            texts.keep(&"x".repeat(LONGEST + 1), 0, &meaning("x"), &memory);
        }
        assert!(texts.known.is_empty());
        for n in 0..1000 {
            let text = format!("{n} {}", "y".repeat(1000));
            texts.keep(&text, 0, &meaning("y"), &memory);
            texts.keep(&text, 0, &meaning("y"), &memory);
            assert!(texts.known.len() <= 64 / 8);
        }
        assert!(texts.known.len() > 4, "and some are kept");
    }
}
