//! The turns of a session's conversations with models, and which of them a command belongs to.
//!
//! A conversation goes on where a request repeats all the messages of one before it, or names its answer. What an agent
//! shortens begins another. A command belongs to the turns whose tool calls wait for their results; where there are none,
//! to the latest turn of each conversation. Where that leaves several and no trace tells them apart, all are candidates:
//! nothing is guessed. All of it is what the agent says, for people: no decision rests on it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::action::{CallNote, PromptRef, TurnNote};

/// Most conversations that are remembered; the one that rested longest makes room.
const CONVERSATIONS: usize = 32;
/// A conversation that rested for so long is over.
const IDLE: Duration = Duration::from_secs(3600);

/// Which conversation a request continues.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// A hash after each of its messages, over all up to it.
    pub chain: Vec<[u8; 32]>,
    /// The answer that it names as the one before it.
    pub after: Option<Arc<str>>,
}

/// The turns of one session.
#[derive(Debug, Default)]
pub struct Turns {
    /// Whether there is any: a session without models takes no lock.
    any: AtomicBool,
    open: Mutex<Vec<Conversation>>,
}

#[derive(Debug)]
struct Conversation {
    turn: TurnNote,
    trace: Option<Arc<str>>,
    /// How many messages its request had, and the hash over all of them.
    said: Option<(usize, [u8; 32])>,
    /// What the model's service calls its last answer.
    answer: Option<Arc<str>>,
    state: State,
    touched: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The model has not answered.
    Asked,
    /// It asked for tools.
    Calls,
    /// It said all that it had to say, or failed.
    Rests,
}

impl Turns {
    /// A request goes to a model.
    pub fn asked(&self, turn: TurnNote, trace: Option<Arc<str>>, thread: Thread) {
        let mut open = self.open();
        open.retain(|known| known.touched.elapsed() < IDLE);
        if let Some(known) = open.iter().position(|known| known.goes_on(&thread)) {
            open.remove(known);
        }
        if open.len() >= CONVERSATIONS {
            let oldest = open.iter().enumerate().min_by_key(|(_, known)| known.touched).map(|(at, _)| at);
            oldest.map(|at| open.remove(at));
        }
        let said = thread.chain.last().map(|last| (thread.chain.len(), *last));
        open.push(Conversation { turn, trace, said, answer: None, state: State::Asked, touched: Instant::now() });
        self.any.store(true, Ordering::Release);
    }

    /// The model answered the turn, and asks for these calls; `answer` is what its service calls the answer.
    pub fn answered(&self, turn: &str, calls: Vec<CallNote>, answer: Option<Arc<str>>) {
        let mut open = self.open();
        if let Some(known) = open.iter_mut().find(|known| *known.turn.id == *turn) {
            known.state = if calls.is_empty() { State::Rests } else { State::Calls };
            known.turn.calls = calls;
            known.answer = answer;
            known.touched = Instant::now();
        }
    }

    /// Whether no model was ever asked.
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// The turns that a command of now belongs to, which itself names `trace`.
    pub fn prompt_ref(&self, trace: Option<&str>) -> Option<PromptRef> {
        if self.is_empty() {
            return None;
        }
        let open = self.open();
        let ids = |found: &[&Conversation]| found.iter().map(|known| Arc::clone(&known.turn.id)).collect();
        let live: Vec<&Conversation> = open.iter().filter(|known| known.touched.elapsed() < IDLE).collect();
        if let Some(trace) = trace {
            let same: Vec<_> = live.iter().copied().filter(|known| known.trace.as_deref() == Some(trace)).collect();
            if !same.is_empty() {
                return Some(PromptRef { turns: ids(&same), by_trace: same.len() < live.len() });
            }
        }
        let calls: Vec<_> = live.iter().copied().filter(|known| known.state == State::Calls).collect();
        let found = if calls.is_empty() { live } else { calls };
        (!found.is_empty()).then(|| PromptRef { turns: ids(&found), by_trace: false })
    }

    /// What is known of turns, for whoever must decide a command that belongs to them.
    pub fn notes(&self, of: &PromptRef) -> Vec<TurnNote> {
        let open = self.open();
        of.turns
            .iter()
            .filter_map(|id| open.iter().find(|known| known.turn.id == *id))
            .map(|k| k.turn.clone())
            .collect()
    }

    fn open(&self) -> MutexGuard<'_, Vec<Conversation>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conversation {
    /// Whether a request continues this one. The same request once more does, unless the first still waits for its answer:
    /// then they are two.
    fn goes_on(&self, next: &Thread) -> bool {
        if let Some(after) = &next.after {
            return self.answer.as_ref() == Some(after);
        }
        let Some((count, last)) = self.said else { return false };
        let repeats = next.chain.get(count - 1) == Some(&last);
        repeats && (next.chain.len() > count || self.state != State::Asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(id: &str) -> TurnNote {
        TurnNote { id: id.into(), model: "m".into(), prompt: Some("p".into()), calls: Vec::new() }
    }

    fn chain(texts: &[&str]) -> Thread {
        let mut hash = [0; 32];
        let chain = texts.iter().map(|text| {
            hash = *blake3::hash(&[&hash, text.as_bytes()].concat()).as_bytes();
            hash
        });
        Thread { chain: chain.collect(), after: None }
    }

    fn call() -> Vec<CallNote> {
        vec![CallNote { id: "c".into(), name: "query".into(), arguments: "{}".into() }]
    }

    fn refs(turns: &Turns, trace: Option<&str>) -> Vec<String> {
        turns.prompt_ref(trace).map(|found| found.turns.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    #[test]
    fn a_command_belongs_to_the_latest_turn() {
        let turns = Turns::default();
        assert_eq!(turns.prompt_ref(None), None);
        turns.asked(turn("1.1"), None, chain(&["a"]));
        assert_eq!(refs(&turns, None), ["1.1"]);
        turns.answered("1.1", call(), None);
        let found = turns.prompt_ref(None).expect("a turn");
        assert_eq!(turns.notes(&found)[0].calls, call());
        turns.asked(turn("1.2"), None, chain(&["a", "b", "c"]));
        assert_eq!(refs(&turns, None), ["1.2"], "the conversation goes on");
        turns.answered("1.2", Vec::new(), None);
        assert_eq!(refs(&turns, None), ["1.2"], "until the next turn");
    }

    #[test]
    fn turns_at_once_are_told_apart_or_listed() {
        let turns = Turns::default();
        let (one, two) = ("0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c");
        turns.asked(turn("1.1"), Some(one.into()), chain(&["a"]));
        turns.asked(turn("2.1"), Some(two.into()), chain(&["b"]));
        assert_eq!(refs(&turns, None), ["1.1", "2.1"]);
        let found = turns.prompt_ref(Some(two)).expect("a turn");
        assert_eq!((&*found.turns[0], found.turns.len(), found.by_trace), ("2.1", 1, true));
        assert_eq!(refs(&turns, Some("2af7651916cd43dd8448eb211c80319c")), ["1.1", "2.1"], "a trace of neither");
        turns.answered("1.1", call(), None);
        assert_eq!(refs(&turns, None), ["1.1"], "only this one waits for a tool");
        turns.answered("2.1", call(), None);
        assert_eq!(refs(&turns, None), ["1.1", "2.1"]);
    }

    #[test]
    fn equal_requests_at_once_are_two_and_one_after_the_other_one() {
        let turns = Turns::default();
        turns.asked(turn("1.1"), None, chain(&["a"]));
        turns.asked(turn("2.1"), None, chain(&["a"]));
        assert_eq!(refs(&turns, None), ["1.1", "2.1"]);
        let again = Turns::default();
        again.asked(turn("1.1"), None, chain(&["a"]));
        again.answered("1.1", Vec::new(), None);
        again.asked(turn("1.2"), None, chain(&["a"]));
        assert_eq!(refs(&again, None), ["1.2"]);
    }

    #[test]
    fn an_answer_that_is_named_tells_the_conversation() {
        let turns = Turns::default();
        turns.asked(turn("1.1"), None, chain(&["a"]));
        turns.answered("1.1", call(), Some("resp_1".into()));
        turns.asked(turn("1.2"), None, Thread { chain: Vec::new(), after: Some("resp_1".into()) });
        assert_eq!(refs(&turns, None), ["1.2"]);
        turns.asked(turn("1.3"), None, Thread { chain: Vec::new(), after: Some("resp_0".into()) });
        assert_eq!(refs(&turns, None), ["1.2", "1.3"]);
    }

    #[test]
    fn not_too_many_are_remembered() {
        let turns = Turns::default();
        for n in 0..CONVERSATIONS * 2 {
            turns.asked(turn(&n.to_string()), None, chain(&[&n.to_string()]));
        }
        let found = refs(&turns, None);
        assert_eq!((found.len(), found.last().map(String::as_str)), (CONVERSATIONS, Some("63")));
    }
}
